//! Certificates, and what becomes of a store whose server has one that nobody vouches for.
//!
//! The authority of these tests is the only one that this process knows, by `SSL_CERT_FILE`, as an operator makes one known.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use replvfs::format::Key;
use replvfs::store::{Store, StoreOptions};
use replvfs_tests::block_on;
use tempfile::TempDir;

use crate::servers::{Missing, nginx_with, program, pyftpdlib_with};

static FOLDER: OnceLock<Result<PathBuf, Missing>> = OnceLock::new();

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Whose certificate a server has.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Whose {
    /// Its own, by the authority.
    Its,
    /// Another server's, by the authority.
    Anothers,
    /// One that it has made itself.
    Nobodys,
}

impl Whose {
    fn name(self) -> &'static str {
        match self {
            Whose::Its => "its",
            Whose::Anothers => "anothers",
            Whose::Nobodys => "nobodys",
        }
    }
}

/// To be called before there is another thread.
pub(crate) fn prepare(folder: &TempDir) {
    let made = make(folder.path());
    if made.is_ok() {
        // SAFETY: there is no other thread that reads the environment.
        unsafe { std::env::set_var("SSL_CERT_FILE", folder.path().join("authority.pem")) };
    }
    FOLDER.set(made).expect("once");
}

pub(crate) fn identity(whose: Whose) -> Result<Identity, Missing> {
    let folder = FOLDER.get().expect("it was prepared").clone()?;
    let file = |suffix: &str| folder.join(format!("{}.{suffix}", whose.name()));
    Ok(Identity {
        certificate: file("pem"),
        key: file("key"),
    })
}

fn make(folder: &Path) -> Result<PathBuf, Missing> {
    program(Path::new("/usr/bin/openssl"))?;
    let at = |name: &str| folder.join(name).display().to_string();
    let make = |name: &str, arguments: &[&str]| {
        let (key, out) = (at(&format!("{name}.key")), at(&format!("{name}.pem")));
        let made = Command::new("/usr/bin/openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", &format!("/CN={name}"), "-keyout", &key, "-out", &out])
            .args(arguments)
            .stderr(Stdio::piped())
            .output()
            .expect("openssl");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    make("authority", &[]);
    let (authority, its_key) = (at("authority.pem"), at("authority.key"));
    let by_authority = ["-CA", &authority, "-CAkey", &its_key];
    let leaf = |name: &str, of: &str, by: &[&str]| {
        let of = format!("subjectAltName={of}");
        let leaf = ["-addext", &of, "-addext", "basicConstraints=critical,CA:FALSE"];
        make(name, &[&leaf, by].concat());
    };
    leaf("its", "IP:127.0.0.1", &by_authority);
    leaf("anothers", "DNS:another.example", &by_authority);
    leaf("nobodys", "IP:127.0.0.1", &[]);
    Ok(folder.to_owned())
}

/// A store is not talked to when its server cannot be told from another one, and the error says why.
pub(crate) fn refusals() -> Result<(), Missing> {
    for whose in [Whose::Anothers, Whose::Nobodys] {
        let identity = identity(whose)?;
        let nginx = nginx_with("webdav: nginx", Some(&identity))?;
        let s3 = nginx.base.replace("webdav://me@", "https://");
        is_refused(
            &format!(
                "s3://bucket/x?region=us-east-1&endpoint={s3}&access_key_id=a&secret_access_key=b&disable_config_load=true&disable_ec2_metadata=true"
            ),
            whose,
        );
        is_refused(&nginx.replica("x"), whose);
        is_refused(&pyftpdlib_with("ftp: pyftpdlib", Some(&identity))?.replica("x"), whose);
    }
    Ok(())
}

fn is_refused(uri: &str, whose: Whose) {
    let options = StoreOptions {
        create: false,
        retries: 0,
        ..StoreOptions::default()
    };
    let store = Store::open(uri, &options).expect("a store");
    let error = block_on(store.has(&Key::Replica))
        .expect_err("it is refused")
        .to_string();
    assert!(error.contains("certificate"), "{whose:?}: {uri}: {error}");
}
