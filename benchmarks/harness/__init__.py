"""What every suite shares: rows, timing, peers, tables, report."""
