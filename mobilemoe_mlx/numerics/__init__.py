"""What every comparison uses: traces of values, measures of error, tolerances."""
