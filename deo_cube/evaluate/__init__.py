"""The numbers we dare to publish: protocols on real labels, baselines beside every model, intervals on every number."""
