//! Tasks at their home: what is kept, what happens next, and who is told.

pub mod journal;
