//! The exchange between callers and those who answer, all in memory.

mod calls;
mod chaos;
mod fair;
mod floods;
mod frugal;
mod trouble;
