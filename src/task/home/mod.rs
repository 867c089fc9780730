//! The home of tasks.

mod attempt;
mod gate;
mod kept;
mod lanes;
mod machine;
mod update;

#[cfg(test)]
mod tests;
