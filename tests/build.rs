//! Tells the tests where the source of the SQLite that they are linked with is: nine megabytes of real text that every
//! machine has which builds them.

fn main() {
    if let Ok(include) = std::env::var("DEP_SQLITE3_INCLUDE") {
        println!("cargo:rustc-env=SQLITE_SOURCE={include}/sqlite3.c");
    }
}
