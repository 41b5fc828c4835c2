"""Predict label maps from CTs: warping -> region_models -> ensemble, cascade -> predictor -> folder. See README.md."""
