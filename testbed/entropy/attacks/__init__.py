"""The portfolio of Eves, one file each (`testbed.entropy.attack`)."""
