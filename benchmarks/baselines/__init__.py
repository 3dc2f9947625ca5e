"""What nsam is compared with, written by hand as one would without nsam."""
