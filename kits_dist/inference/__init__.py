"""From a CT to labels: warping -> region_models -> cascade, ensemble -> predictor. See README.md."""
