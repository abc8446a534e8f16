#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| replvfs_fuzz::remote::run(data));
