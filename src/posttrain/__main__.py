"""`python -m posttrain` is `posttrain`."""

from posttrain.cli.main import main

raise SystemExit(main())
