"""Both gradient modes side by side on one data set: several seeds, paired, with what differs measured along training and at its end."""
