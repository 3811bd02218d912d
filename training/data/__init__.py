"""What networks are trained and tested on: data sets, rendered views, augmentation, batches."""
