//! OpenDAL's operator for FTP, and what that cannot do: rename an object, and ask for the length of one by its name. It looks for the name in a listing of the folder
//! instead, which costs more with each object and tells a length only as well as it can read the listing. Nor can it upload by TLS 1.3: it closes the data connection
//! without having read the session tickets that the server has sent on it, so the system resets it, and what the server had not read yet is lost.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use opendal::services::FtpConfig;
use opendal::{Configurator, ErrorKind};
use suppaftp::tokio::{AsyncRustlsConnector, AsyncRustlsFtpStream};
use suppaftp::tokio_rustls::TlsConnector;
use suppaftp::tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};
use suppaftp::types::FileType;
use suppaftp::{FtpError, Status};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Mutex;

use super::service::{Opened, Options, Service};
use super::{Body, Failure, StoreError};

pub(super) const SERVICE: Service = Service {
    authority: "server",
    form: "ftps://<user>@<server>/<path>",
    known: "user and password",
    takes_user: true,
    knows,
    open,
};

/// Each is a login; servers refuse more than a few from one address.
pub(super) const MOST_AT_ONCE: usize = 4;
/// What is read at a time.
const READ_BYTES: usize = 64 << 10;
/// What is written at a time.
const WRITTEN_BYTES: u64 = 1 << 20;
/// For a command and its answer, for a login, or for a part of an object.
const ANSWER: Duration = Duration::from_secs(30);

fn knows(key: &str) -> bool {
    matches!(key, "user" | "password")
}

fn open(mut options: Options<'_>) -> Result<Opened, StoreError> {
    if let Some(user) = options.user.take() {
        options.keys.entry("user".to_owned()).or_insert(user);
    }
    if options.path.trim_matches('/').is_empty() {
        return Err(options.refused(format!("it names no folder; write {}", SERVICE.form)));
    }
    let is_secure = options.scheme == "ftps";
    if is_secure {
        // OpenDAL takes the process's choice of cryptography, and panics where there are two to choose from and none is chosen.
        let _ = crypto::ring::default_provider().install_default();
    }
    let mut config: FtpConfig = options.config()?;
    let at = format!("{}://{}", options.scheme, options.authority);
    config.endpoint = Some(at.clone());
    config.root = Some(options.path.clone());
    let control = Control::new(&options, &config, is_secure);
    let operator = options.operator(config.into_builder())?;
    Ok(Opened {
        operator,
        at,
        control: Some(control),
    })
}

/// A connection for commands. It is made when it is needed, and anew after an error.
pub(super) struct Control {
    address: String,
    host: String,
    root: String,
    user: String,
    password: String,
    is_secure: bool,
    connection: Mutex<Option<AsyncRustlsFtpStream>>,
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Control {
    fn new(options: &Options<'_>, config: &FtpConfig, is_secure: bool) -> Control {
        let authority = &options.authority;
        let (host, port) = authority.rsplit_once(':').unwrap_or((authority, "21"));
        Control {
            address: format!("{host}:{port}"),
            host: host.to_owned(),
            root: options.path.clone(),
            user: config.user.clone().unwrap_or_default(),
            password: config.password.clone().unwrap_or_default(),
            is_secure,
            connection: Mutex::default(),
        }
    }

    /// The length of an object in bytes; `None` if there is none. A server answers the same where it does not allow to look.
    pub(super) async fn size(&self, path: &str) -> Result<Option<u64>, opendal::Error> {
        match self.command(Command::Size(path)).await {
            Ok(size) => Ok(Some(size as u64)),
            Err(FtpError::UnexpectedResponse(answer)) if answer.status == Status::FileUnavailable => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// Whether there is a folder of that name. OpenDAL waits for a listing of one that is not there until its time is over.
    pub(super) async fn has_folder(&self, path: &str) -> Result<bool, opendal::Error> {
        match self.command(Command::Enter(path, &self.root)).await {
            Ok(_) => Ok(true),
            Err(FtpError::UnexpectedResponse(answer)) if answer.status == Status::FileUnavailable => Ok(false),
            Err(error) => Err(failed(error)),
        }
    }

    /// Reads from a place on, no more than so many bytes. On a connection of its own: a transfer that is given up half-way leaves an answer in the connection, which
    /// the next request takes for its own; OpenDAL's reader leaves one after each transfer.
    pub(super) async fn read(&self, path: &str, start: u64, limit: u64) -> Result<Bytes, opendal::Error> {
        self.try_read(path, start, limit).await.map_err(failed)
    }

    async fn try_read(&self, path: &str, start: u64, limit: u64) -> Result<Bytes, FtpError> {
        let mut connection = in_time(self.connect()).await?;
        if start > 0 {
            let start = usize::try_from(start).map_err(|_| too_large())?;
            in_time(connection.resume_transfer(start)).await?;
        }
        let mut stream = in_time(connection.retr_as_stream(path)).await?;
        let mut read = BytesMut::new();
        let mut part = vec![0; READ_BYTES];
        while (read.len() as u64) < limit {
            let got = in_time(async { stream.read(&mut part).await.map_err(FtpError::ConnectionError) }).await?;
            if got == 0 {
                // Only the server knows whether that is the end.
                in_time(connection.finalize_retr_stream(stream)).await?;
                return Ok(read.freeze());
            }
            let wanted = (limit - read.len() as u64).min(got as u64);
            // At most the length of the part.
            read.extend_from_slice(&part[..wanted as usize]);
        }
        Ok(read.freeze())
    }

    /// Replaces what is there. On a connection of its own, as a read.
    pub(super) async fn write(&self, path: &str, body: Body) -> Result<(), Failure> {
        let failed = |error| Failure::Store(failed(error));
        self.make_folders(path).await.map_err(failed)?;
        let mut connection = in_time(self.connect()).await.map_err(failed)?;
        let mut stream = in_time(connection.put_with_stream(path)).await.map_err(failed)?;
        let len = body.len();
        let mut at = 0;
        while at < len {
            let end = (at + WRITTEN_BYTES).min(len);
            let part = body.part(at..end).await?;
            let written = async { stream.write_all(&part).await.map_err(FtpError::ConnectionError) };
            in_time(written).await.map_err(failed)?;
            at = end;
        }
        let ended = async {
            stream.shutdown().await.map_err(FtpError::ConnectionError)?;
            // Until the server has read everything, and closes its side. How it does that says nothing: its answer does.
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
            drop(stream);
            connection.finalize_put_stream(tokio::io::sink()).await
        };
        in_time(ended).await.map_err(failed)
    }

    /// Those above an object.
    async fn make_folders(&self, path: &str) -> Result<(), FtpError> {
        let folders = path.match_indices('/').map(|(at, _)| &path[..at]);
        for folder in folders {
            match self.command(Command::MakeFolder(folder)).await {
                // It is there already, or what comes next says why not.
                Err(FtpError::UnexpectedResponse(_)) | Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Most servers replace what has the new name.
    pub(super) async fn rename(&self, from: &str, to: &str) -> Result<(), opendal::Error> {
        self.make_folders(to).await.map_err(failed)?;
        self.command(Command::Rename(from, to)).await.map(drop).map_err(failed)
    }

    /// A connection may have been closed since it was used last: the second attempt has a new one.
    async fn command(&self, command: Command<'_>) -> Result<usize, FtpError> {
        let mut kept = self.connection.lock().await;
        loop {
            let is_new = kept.is_none();
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => in_time(self.connect()).await?,
            };
            match in_time(command.run(&mut connection)).await {
                Err(FtpError::UnexpectedResponse(answer)) if answer.status != Status::NotAvailable => {
                    *kept = Some(connection);
                    return Err(FtpError::UnexpectedResponse(answer));
                }
                Err(error) if is_new => return Err(error),
                Err(_) => {}
                Ok(done) => {
                    *kept = Some(connection);
                    return Ok(done);
                }
            }
        }
    }

    async fn connect(&self) -> Result<AsyncRustlsFtpStream, FtpError> {
        let mut connection = AsyncRustlsFtpStream::connect(&self.address).await?;
        if self.is_secure {
            let connector = AsyncRustlsConnector::from(TlsConnector::from(Arc::new(tls()?)));
            connection = connection.into_secure(connector, &self.host).await?;
        }
        if !self.user.is_empty() {
            connection.login(&self.user, &self.password).await?;
        }
        if let Err(FtpError::UnexpectedResponse(_)) = connection.cwd(&self.root).await {
            // OpenDAL makes the last one only.
            let ends = self.root.match_indices('/').map(|(at, _)| at).filter(|at| *at > 0);
            for end in ends.chain([self.root.len()]) {
                match connection.mkdir(&self.root[..end]).await {
                    Err(FtpError::UnexpectedResponse(_)) | Ok(()) => {}
                    Err(error) => return Err(error),
                }
            }
            connection.cwd(&self.root).await?;
        }
        connection.transfer_type(FileType::Binary).await?;
        Ok(connection)
    }
}

/// What a connection is asked.
#[derive(Clone, Copy)]
enum Command<'a> {
    Size(&'a str),
    MakeFolder(&'a str),
    /// A folder, and back to the root.
    Enter(&'a str, &'a str),
    Rename(&'a str, &'a str),
}

impl Command<'_> {
    /// A length, or nothing.
    async fn run(self, connection: &mut AsyncRustlsFtpStream) -> Result<usize, FtpError> {
        match self {
            Command::Size(path) => connection.size(path).await,
            Command::Enter(path, root) => {
                connection.cwd(path).await?;
                connection.cwd(root).await.map(|()| 0)
            }
            Command::MakeFolder(path) => connection.mkdir(path).await.map(|()| 0),
            Command::Rename(from, to) => connection.rename(from, to).await.map(|()| 0),
        }
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, FtpError>>) -> Result<T, FtpError> {
    match tokio::time::timeout(ANSWER, work).await {
        Ok(done) => done,
        Err(_) => Err(FtpError::ConnectionError(io::ErrorKind::TimedOut.into())),
    }
}

fn tls() -> Result<ClientConfig, FtpError> {
    let secure = |error: String| FtpError::SecureError(error);
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| secure(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

fn too_large() -> FtpError {
    FtpError::ConnectionError(io::ErrorKind::FileTooLarge.into())
}

fn failed(error: FtpError) -> opendal::Error {
    let (kind, is_passing) = match &error {
        FtpError::UnexpectedResponse(answer) => match answer.status {
            Status::FileUnavailable => (ErrorKind::NotFound, false),
            Status::NotLoggedIn => (ErrorKind::PermissionDenied, false),
            status => (ErrorKind::Unexpected, status == Status::NotAvailable),
        },
        FtpError::ConnectionError(_) => (ErrorKind::Unexpected, true),
        _ => (ErrorKind::Unexpected, false),
    };
    let failed = opendal::Error::new(kind, "ftp error").set_source(error);
    if is_passing { failed.set_temporary() } else { failed }
}
