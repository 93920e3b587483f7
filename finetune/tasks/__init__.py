"""What each fine-tuning program trains: model, data, loss, previews and final weights."""
