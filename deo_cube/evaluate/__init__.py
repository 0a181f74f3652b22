"""The numbers we dare to publish."""
