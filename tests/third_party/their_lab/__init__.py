"""Extensions of the testbed as a third party would write them."""
