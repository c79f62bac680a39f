"""Payment methods, deposit addresses and charges, for people who are signed in and for programs with a key."""
