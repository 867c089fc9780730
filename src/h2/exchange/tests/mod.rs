//! The exchange between callers and those who answer, all in memory.

mod calls;
mod chaos;
mod floods;
mod frugal;
mod trouble;
