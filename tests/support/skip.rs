//! Tests that cannot run here say so where everybody sees it.

use std::{env, fs::File, io::Write};

/// Says that this test is not run, and why. The caller returns.
///
/// # Panics
/// Where CI is set: there nothing is skipped.
pub fn skip(test: &str, why: &str) {
    assert!(
        env::var_os("CI").is_none(),
        "{test} cannot run here, and CI skips nothing: {why}"
    );
    let line = format!("{test}: {why}\n");
    // Not by a macro: the test harness would keep what those print to itself.
    drop(std::io::stderr().write_all(format!("SKIPPED {line}").as_bytes()));
    if let Some(path) = env::var_os("ATTACHE_TEST_SKIPS") {
        let file = File::options().create(true).append(true).open(path);
        file.unwrap().write_all(line.as_bytes()).unwrap();
    }
}
