//! Arguments, levels and who hears of them.
