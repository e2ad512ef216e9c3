"""Images: named sets, folders, decoding, range of values, augmentation."""
