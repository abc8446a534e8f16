//! Linker flags of the extension.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Some dependencies export C functions of their own. In a library that is loaded into other programs they have no place: two
    // libraries with the same name in them would get each other's. No effect on what link-time optimisation has merged.
    if std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux") {
        println!("cargo::rustc-cdylib-link-arg=-Wl,--exclude-libs,ALL");
    }
}
