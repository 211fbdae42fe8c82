"""The parts of the benchmark: set up, start servers, measure, report."""
