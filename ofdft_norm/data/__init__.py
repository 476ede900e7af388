"""What a sample is: the basis, label files, the data set over them, and the labels that come with the package."""
