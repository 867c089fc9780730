#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| attache::h2::fuzz::exchange(bytes));
