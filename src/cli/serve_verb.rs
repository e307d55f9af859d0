//! `serve`: all settings at once, and the signals that stop it.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::run::{block_on_many, circumstances};
use super::serve_page::{self, LivePage};
use super::sources::Sources;
use super::{alert_settings, exit, receive_verb, serve_jobs, settings, timetable};
use crate::command::alert::Alarm;
use crate::command::clock::MachineClock;
use crate::command::stop::StopButton;
use crate::command::{Failure, FailureKind, bounds};
use crate::repo::{ClusterName, Writer};
use crate::serve::http::Listen;
use crate::serve::notify::Notify;
use crate::serve::{self, Entry, Pages, Serve};
use crate::storage::settings_file;

/// `serve`
#[derive(Debug, Default, Args)]
#[command(after_help = "Examples:\n  sudo -u postgres pgark serve\n  pgark serve --listen 127.0.0.1:7433\n  \
        pgark serve --listen none\n\n\
        Runs what is due by [schedule], receives WAL with serve.receive = true, and answers /, /metrics and /healthz over HTTP \
        (docs/serve.md). Stays in the foreground until SIGTERM, SIGINT, SIGQUIT or SIGHUP; then it stops in good order and exits 0. \
        Exits 2 to 99 when it cannot begin, or when WAL that was received is not durable at its end (docs/exit-codes.md).")]
pub struct ServeArgs {
    /// Where HTTP is served, or `none` [default: 127.0.0.1:7432]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
}

impl ServeArgs {
    /// The flags that stand for settings.
    pub fn flag_values(&self) -> Vec<(&'static str, &'static str, Option<String>)> {
        vec![("serve.listen", "--listen", self.listen.clone())]
    }
}

/// `pgark serve`
pub fn serve(sources: &Sources) -> Result<u8, Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::new(FailureKind::LocalIo, e.to_string()))?;
    let serve = Serve { notify: notify()?, ..build(sources, circumstances().writer, &program)? };
    block_on_many(async {
        let (button, stop) = StopButton::new();
        let signal = async {
            let name = bounds::any_signal().await;
            tracing::info!("{name}: stopping");
            button.press();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            biased;
            served = serve::run(serve, MachineClock::shared(), stop) => served,
            () = signal => Ok(()),
        }
    })?;
    Ok(exit::SUCCESS)
}

/// Everything that is served by these settings, run by `writer`. `program` is pgark.
pub fn build(sources: &Sources, writer: Writer, program: &Path) -> Result<Serve, Failure> {
    let repository = settings::repository(sources)?;
    let receive = match settings::is_true(sources, "serve.receive") {
        true => Some(receive_verb::wanted(sources)?),
        false => None,
    };
    let watched = settings::watched(sources, true)?;
    let alarm = Alarm::new(alert_settings::alerts(sources, &writer.host)?)?;
    let (told, metrics) = serve_page::alarm_and_metrics(alarm, repository.cluster.to_string(), watched.rules.clone());
    Ok(Serve {
        timetable: timetable(sources, &repository.cluster, program)?,
        catch_up: settings::is_true(sources, "schedule.catch_up"),
        receive,
        watched,
        look: settings::duration(sources, "serve.look")?,
        on_look: vec![told],
        http: listen(sources)?,
        pages: Pages { page: Arc::new(LivePage::new(repository.clone())), metrics },
        notify: Notify::default(),
        repository,
        writer,
    })
}

/// Looks at what only `serve` uses, for `config check`.
pub fn check(sources: &Sources) -> Result<(), Failure> {
    timetable(sources, &settings::repository(sources)?.cluster, Path::new("pgark"))?;
    alert_settings::alerts(sources, &circumstances().writer.host)?;
    listen(sources).map(drop)
}

fn timetable(sources: &Sources, cluster: &ClusterName, program: &Path) -> Result<Vec<Entry>, Failure> {
    let entry = |(kind, schedule)| Ok(Entry { kind, schedule, job: serve_jobs::job(kind, sources, program)? });
    timetable::schedules(sources, cluster)?.into_iter().map(entry).collect()
}

fn listen(sources: &Sources) -> Result<Option<Listen>, Failure> {
    const PATH: &str = "serve.listen";
    let text = sources.get(PATH).unwrap_or_default();
    if text == "none" {
        return Ok(None);
    }
    let wrong = || sources.complain(PATH, "must be an address and a port, like `127.0.0.1:7432`, or `none`");
    let address: SocketAddr = text.parse().map_err(|_| wrong())?;
    let token = settings::path(sources, "serve.token_file").map(|path| {
        let unreadable =
            |e: std::io::Error| sources.complain("serve.token_file", format!("cannot read `{}`: {e}", path.display()));
        let text = settings_file::read_text(&path).map_err(unreadable)?;
        Ok::<_, Failure>(text.lines().next().unwrap_or_default().trim().to_owned())
    });
    let tls = tls(sources)?;
    Listen::new(address, token.transpose()?.as_deref(), tls).map(Some)
}

fn tls(sources: &Sources) -> Result<Option<Arc<ServerConfig>>, Failure> {
    let (cert, key) = ("serve.tls_cert", "serve.tls_key");
    let (Some(cert_file), Some(key_file)) = (settings::path(sources, cert), settings::path(sources, key)) else {
        return match (sources.get(cert), sources.get(key)) {
            (None, None) => Ok(None),
            (Some(_), _) => Err(sources.complain(cert, format!("needs `{key}` beside it"))),
            (_, Some(_)) => Err(sources.complain(key, format!("needs `{cert}` beside it"))),
        };
    };
    let unreadable = |path: &'static str, why: String| sources.complain(path, why);
    let bytes = |path, file: &std::path::Path| {
        settings_file::read(file)
            .map(|file| file.bytes)
            .map_err(|e| unreadable(path, format!("cannot read `{}`: {e}", file.display())))
    };
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes(cert, &cert_file)?).collect();
    let certificates = certificates.map_err(|e| unreadable(cert, format!("is no PEM: {e}")))?;
    let private = PrivateKeyDer::from_pem_slice(&bytes(key, &key_file)?)
        .map_err(|e| unreadable(key, format!("holds no private key: {e}")))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config
        .and_then(|config| config.with_no_client_auth().with_single_cert(certificates, private))
        .map_err(|e| unreadable(cert, format!("and `{key}` cannot be used: {e}")))?;
    Ok(Some(Arc::new(config)))
}

/// As systemd says in the environment.
fn notify() -> Result<Notify, Failure> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    let watchdog = number("WATCHDOG_USEC").filter(|usec| ours && *usec > 0).map(Duration::from_micros);
    match std::env::var_os("NOTIFY_SOCKET").filter(|socket| !socket.is_empty()) {
        Some(socket) => Notify::to(&socket, watchdog).map_err(|e| {
            Failure::new(FailureKind::LocalIo, format!("`NOTIFY_SOCKET` {}: {e}", socket.to_string_lossy()))
        }),
        None => Ok(Notify::default()),
    }
}
