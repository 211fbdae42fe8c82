"""The parts of the benchmark: prepare, start servers, measure, report."""
