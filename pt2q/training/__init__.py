"""What training needs beside fake quantizers: schedules, statistics, the fast batch norm."""
