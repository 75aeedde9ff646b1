from experiments.runner.command import main

raise SystemExit(main())
