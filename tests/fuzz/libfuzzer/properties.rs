#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cony::fuzz::properties(data));
