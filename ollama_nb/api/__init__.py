"""Value types that all packages share: names, requests, events, models, options. No I/O."""
