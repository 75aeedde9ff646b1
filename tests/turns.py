"""What runs by default: of the cases each test its turn, of long files a part; all of it under ``--full``."""

import itertools

import pytest

from tests.cases import CASES, RUNS

# Cases that every test of the contract runs by default; of the others each runs a fourth, all of them under --full.
ALWAYS = (
    *("elman", "lstm_learned_carry", "gru_after", "user_clockwork", "user_textbook_lstm", "chain", "lru"),
    *("bidirectional_concat", "stack"),
)

# Files of many tests that compile much: who runs more than these files gets every eighth or fourth of their tests, all
# of them under --full. Who asks for a file, or for names by -k, gets all of it.
EIGHTH = (
    *("test_attention", "test_beam_search", "test_ctc", "test_decoder", "test_generate", "test_log_likelihood"),
    *("test_equations_of_layer_norm", "test_equations_of_xlstm", "test_rate_networks", "test_ridge"),
    *("test_state_wrappers", "test_weight_wrappers", "test_recurrent_dropout", "test_parallel", "test_chunked"),
    *("test_parallel_meshes", "test_newton", "test_jacobians", "test_flow", "test_complex_carries", "test_meshes"),
    *("test_one_kernel", "test_linear_cells", "test_initial_values", "test_gradient_errors", "test_random_models"),
    *("test_inputs_of_states", "test_invalid_steps", "test_packed", "test_contract", "test_checking", "test_running"),
    *("test_inspect_any_bytes", "test_checkpoints", "test_plans", "test_predict", "test_resume", "test_long_memory"),
    *("test_other_trainings", "test_fused_products", "test_tbptt", "test_branching", "test_exporting", "test_lowering"),
    *("test_gradients_of_xlstm", "test_pairs_of_wrappers", "test_decoding_with_memories"),
    *("test_fixed_points", "test_segments", "test_strict_promotion", "test_empty", "test_decisions", "test_reverse"),
    *("test_online_rules", "test_online_service", "test_kf_rtrl", "test_agreement", "test_charlm", "test_g2p"),
    *("test_forecast_series", "test_music", "test_online_drift", "test_pretrained", "test_online"),
)
FOURTH = (
    *("test_equations", "test_wrappers", "test_ensemble", "test_forecast", "test_parallel_linear", "test_stream"),
    *("test_passes", "test_counted", "test_cotangent_clip", "test_sequences", "test_donated_carries", "test_locks"),
    *("test_decoding_on_meshes", "test_experiments_options", "test_memory_rl", "test_digits", "test_sweep", "test_gpu"),
    *("test_saved_files", "test_floor", "test_affine_scan", "test_sequence_dtypes", "test_saving", "test_plotting"),
    *("test_plans_of_layer_norm", "test_reports", "test_vowels", "test_online_steps"),
    *("test_errors_of_online",),
)


def share(path):
    """Of how many tests of a file one runs by default."""
    if path.stem in EIGHTH:
        one_of = 8
    elif path.stem in FOURTH or path.parent.name == "interop":
        one_of = 4
    else:
        one_of = 1
    return one_of


def own_run(index):
    """The plan under which the case of that place in the list runs beside the default."""
    if index % 2 == 0:
        runs = "plain", "checkpointed", "chunks", "nothing", "checkpointed", "everything", "nested", "packed"
    else:
        runs = "checkpointed", "everything", "packed", "nested", "nothing"
    return runs[index // 2 % len(runs)]


def has_all(name):
    return name.removesuffix("-forward").removesuffix("-reverse") in ALWAYS


def is_turn(name, index, test):
    """Whether the test of that number runs the case of that name and place: one test of four, or all."""
    return has_all(name) or (index + test) % 4 == 0


def named_in_turn(names, test):
    """The names whose turn it is; the others under ``--full``."""
    turns = (is_turn(name, index, test) for index, name in enumerate(names))
    return [pytest.param(n, id=n, marks=() if turn else pytest.mark.full) for n, turn in zip(names, turns, strict=True)]


def with_runs(cases, test=None):
    """Every case under the default plan, every other or fourth one under its own; all pairs under ``--full``."""
    for index, case in enumerate(cases):
        for run in RUNS:
            its_own = index % (2 if has_all(case.name) else 4) == 0 and run == own_run(index)
            its_turn = run == "auto" or its_own
            its_turn = its_turn and (test is None or is_turn(case.name, index, test))
            yield pytest.param(case.under(run), id=case.under(run).id, marks=() if its_turn else pytest.mark.full)


def in_turn(cases, test=None):
    """Every case under one plan, every other one under the default; all pairs under ``--full``.

    With the number of a test: those whose turn it is.
    """
    for index, case in enumerate(cases):
        for run in RUNS:
            its_turn = run == ("auto" if index % 2 == 0 else own_run(index))
            its_turn = its_turn and (test is None or is_turn(case.name, index, test))
            yield pytest.param(case.under(run), id=f"{case.name}-{run}", marks=() if its_turn else pytest.mark.full)


def case_by_flags(flags, cases=None):
    """Every case with one of the flags in turn, so that all pairs occur over the list; the rest under ``--full``."""
    cases, runs = (list(with_runs(CASES)), len(RUNS)) if cases is None else (cases, 1)
    return pytest.mark.parametrize(
        ("case", "flags"),
        [
            pytest.param(
                *(*case.values, f),
                id=f"{case.id}-{f.name}",
                marks=case.marks if (i // runs - j) % len(flags) == 0 else pytest.mark.full,
            )
            for (i, case), (j, f) in itertools.product(enumerate(cases), enumerate(flags))
        ],
    )
