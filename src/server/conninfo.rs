//! How the server is reached, as users of libpq expect: what was given, then the service file, `PG*` variables, `.pgpass` and
//! libpq's defaults. After this nobody sees an unknown parameter or a missing default.
//!
//! Sources: "Connection Strings", "Environment Variables" and "SSL Support" in PostgreSQL's documentation of libpq;
//! `connectOptions2` in `fe-connect.c` and `initialize_SSL` in `fe-secure-openssl.c`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::channel_binding::ChannelBinding;
use super::connection_string::{ConnectionString, InvalidConninfo};
use super::handshake::Handshake;
use super::keep_alive::KeepAlive;
use super::parameters;
use super::surroundings::{self, Surroundings};
use super::target_session::TargetSession;
use super::tls::{Roots, Tls};

/// Everything that a connection needs. Never shown: it holds the password.
#[derive(Clone)]
pub struct Conninfo {
    /// The servers to try, one after the other; at least one.
    pub servers: Vec<Server>,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// `application_name`
    pub application_name: Option<String>,
    /// `options`
    pub options: Option<String>,
    /// How long one server may take; `None`: it does not say.
    pub connect_timeout: Option<Duration>,
    /// TLS, where it is not a socket.
    pub tls: Tls,
    /// How TLS is begun.
    pub handshake: Handshake,
    /// Whether the login must hold for this connection only.
    pub channel_binding: ChannelBinding,
    /// Which of the servers is wanted.
    pub target: TargetSession,
    /// How the kernel notices that a server is gone.
    pub keep_alive: KeepAlive,
    /// All of it by libpq's names, for PostgreSQL's own programs.
    pub parameters: BTreeMap<String, String>,
}

/// One place to connect to.
#[derive(Clone)]
pub struct Server {
    /// A name or address, or the directory of a socket.
    pub host: String,
    /// An address that needs no look-up.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// For this place.
    pub password: Option<String>,
}

impl Server {
    /// Whether it is a Unix socket. There is no TLS then, whatever `sslmode` says.
    pub fn is_socket(&self) -> bool {
        self.host.starts_with('/')
    }

    /// For messages about one of several.
    pub(super) fn describe(&self) -> String {
        format!("{}, port {}", shown(&self.host), self.port)
    }
}

impl Conninfo {
    /// The server for messages: no password, and nothing that does not look like what it should be.
    pub fn describe(&self) -> String {
        let hosts: Vec<&str> = self.servers.iter().map(|server| server.host.as_str()).collect();
        let ports: Vec<String> = self.servers.iter().map(|server| server.port.to_string()).collect();
        let (hosts, ports) = (hosts.join(","), if all_same(&ports) { ports[..1].join(",") } else { ports.join(",") });
        format!("host {}, port {ports}, database {}, user {}", shown(&hosts), shown(&self.database), shown(&self.user))
    }

    /// Whether both lead to the same places, whoever logs in.
    pub fn is_at(&self, other: &Conninfo) -> bool {
        let places = |conninfo: &Conninfo| -> Vec<(String, Option<IpAddr>, u16)> {
            conninfo.servers.iter().map(|server| (server.host.clone(), server.address, server.port)).collect()
        };
        places(self) == places(other)
    }
}

fn all_same(texts: &[String]) -> bool {
    texts.windows(2).all(|pair| pair[0] == pair[1])
}

fn shown(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | ',' | ':');
    if text.chars().all(plain) { format!("`{text}`") } else { "(not shown)".to_owned() }
}

impl ConnectionString {
    /// Fills in what is not given, and refuses what cannot be kept.
    pub fn resolve(mut self, around: &dyn Surroundings) -> Result<Conninfo, InvalidConninfo> {
        let account = surroundings::account(around);
        let home = account.as_ref().map(|account| account.home.as_path());
        let given = |string: &Self, name: &str, variable: &str| {
            string.get(name).or_else(|| around.variable(variable).filter(|value| !value.is_empty()))
        };
        if let Some(service) = given(&self, "service", "PGSERVICE") {
            let file = given(&self, "servicefile", "PGSERVICEFILE");
            for (key, value) in surroundings::service(around, home, &service, file.as_deref())? {
                self.values.entry(key).or_insert(value);
            }
        }
        for (variable, parameter) in parameters::variables() {
            if let Some(value) = around.variable(variable).filter(|value| !value.is_empty()) {
                self.values.entry(parameter.to_owned()).or_insert(value);
            }
        }
        parameters::check(&self.values)?;
        let known = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
        if self.get("sslmode").is_some_and(|mode| !known.contains(&mode.as_str())) {
            return Err(InvalidConninfo::new(format!("`sslmode` is not one of {}", known.join(", "))));
        }
        for name in ["user", "port", "sslmode", "host", "hostaddr", "connect_timeout"] {
            self.refuse_odd(name)?;
        }
        let no_user = || InvalidConninfo::new("the user is not known: give `user`");
        let os_user = account.as_ref().map(|account| account.name.clone());
        let user = self.get("user").or(os_user).ok_or_else(no_user)?;
        let database = self.get("dbname").unwrap_or_else(|| user.clone());
        let mut servers = self.servers(around)?;
        self.fill_in_passwords(around, home, &mut servers, [&database, &user]);
        let tls = match servers.iter().all(Server::is_socket) {
            true => Tls::Off,
            false => self.tls(around, home)?,
        };
        let is_sure = !matches!(tls, Tls::Off | Tls::IfOffered) || servers.iter().all(Server::is_socket);
        let channel_binding = self.get("channel_binding").as_deref().and_then(ChannelBinding::parse);
        let target = self.get("target_session_attrs").as_deref().and_then(TargetSession::parse);
        Ok(Conninfo {
            handshake: Handshake::read(&self, around, home, is_sure)?,
            tls,
            channel_binding: channel_binding.unwrap_or_default(),
            target: target.unwrap_or_default(),
            keep_alive: KeepAlive::read(&self)?,
            servers,
            user,
            database,
            application_name: self.get("application_name").or_else(|| self.get("fallback_application_name")),
            options: self.get("options"),
            connect_timeout: self.connect_timeout()?,
            parameters: self.values,
        })
    }

    /// A parameter; an empty one counts as not given, as for libpq.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        self.values.get(name).filter(|value| !value.is_empty()).cloned()
    }

    /// Two parameters in one, as when a quote or a blank was forgotten: the second may be the password.
    fn refuse_odd(&self, name: &str) -> Result<(), InvalidConninfo> {
        let lists = matches!(name, "host" | "hostaddr" | "port");
        let odd = |c: char| matches!(c, ';' | '=') || c.is_whitespace() || (c == ',' && !lists);
        match self.get(name).is_some_and(|value| value.contains(odd)) {
            true => Err(InvalidConninfo::new(format!("`{name}` holds a blank, `;`, `,` or `=`"))),
            false => Ok(()),
        }
    }

    fn servers(&self, around: &dyn Surroundings) -> Result<Vec<Server>, InvalidConninfo> {
        let list = |name: &str| self.get(name).map(|value| value.split(',').map(str::to_owned).collect::<Vec<_>>());
        let (hosts, addresses, ports) = (list("host"), list("hostaddr"), list("port").unwrap_or_default());
        let count = addresses.as_ref().or(hosts.as_ref()).map_or(1, Vec::len);
        if hosts.as_ref().is_some_and(|hosts| hosts.len() != count) {
            return Err(InvalidConninfo::new("`host` and `hostaddr` do not name equally many servers"));
        }
        if ports.len() > 1 && ports.len() != count {
            return Err(InvalidConninfo::new("`port` does not name as many ports as there are servers"));
        }
        let at = |list: &Option<Vec<String>>, index: usize| {
            list.as_ref().and_then(|list| list.get(index)).filter(|text| !text.is_empty()).cloned()
        };
        let mut servers = Vec::new();
        for index in 0..count {
            let address = at(&addresses, index)
                .map(|text| text.parse().map_err(|_| InvalidConninfo::new("`hostaddr` is not an address")))
                .transpose()?;
            let port = ports.get(index).or(ports.first()).filter(|port| !port.is_empty());
            let port = port.map_or(Ok(5432), |port| port.parse::<u16>());
            let port = port.ok().filter(|port| *port > 0);
            let host = at(&hosts, index).or(address.map(|address: IpAddr| address.to_string()));
            let host = host.unwrap_or_else(|| default_socket(around).to_owned());
            if host.starts_with('@') {
                return Err(InvalidConninfo::new("`host` is an abstract socket, which is not supported"));
            }
            servers.push(Server {
                host,
                address,
                port: port.ok_or_else(|| InvalidConninfo::new("`port` is not a number from 1 to 65535"))?,
                password: None,
            });
        }
        Ok(servers)
    }

    fn fill_in_passwords(
        &self,
        around: &dyn Surroundings,
        home: Option<&Path>,
        servers: &mut [Server],
        [database, user]: [&str; 2],
    ) {
        if let Some(password) = self.get("password") {
            servers.iter_mut().for_each(|server| server.password = Some(password.clone()));
            return;
        }
        let default = home.map(|home| home.join(".pgpass"));
        let Some(file) = self.get("passfile").map(PathBuf::from).or(default) else { return };
        for server in servers {
            let is_default = SOCKETS.contains(&server.host.as_str());
            let host = if is_default { "localhost" } else { server.host.as_str() };
            let port = server.port.to_string();
            // Lines for the database `replication` count, too: libpq's users have them for backups.
            let for_database = |database| surroundings::password(around, &file, [host, &port, database, user]);
            server.password = for_database(database).or_else(|| for_database("replication"));
        }
    }

    /// libpq verifies the certificate wherever there is a root certificate, also with `require`.
    fn tls(&self, around: &dyn Surroundings, home: Option<&Path>) -> Result<Tls, InvalidConninfo> {
        let root = self.get("sslrootcert");
        let system = root.as_deref() == Some("system");
        let mode = self.get("sslmode").unwrap_or_else(|| if system { "verify-full" } else { "prefer" }.to_owned());
        let roots = |needed: bool| match &root {
            Some(_) if system => Ok(Some(Roots::System)),
            Some(path) => match around.file(Path::new(path)) {
                Ok((pem, _)) => Ok(Some(Roots::Pem(pem))),
                Err(error) => {
                    Err(InvalidConninfo::new(format!("cannot read the file that `sslrootcert` names: {error}")))
                }
            },
            None => {
                let default = home.map(|home| home.join(".postgresql/root.crt"));
                match default.and_then(|path| around.file(&path).ok()) {
                    Some((pem, _)) => Ok(Some(Roots::Pem(pem))),
                    None if needed => Err(InvalidConninfo::new(
                        "`sslmode` wants the certificate verified, but there is neither `sslrootcert` nor \
                         ~/.postgresql/root.crt (`sslrootcert=system` takes the system's authorities)",
                    )),
                    None => Ok(None),
                }
            }
        };
        match mode.as_str() {
            "disable" | "allow" | "prefer" | "require" | "verify-ca" if system => {
                Err(InvalidConninfo::new("`sslrootcert=system` needs `sslmode=verify-full`"))
            }
            "disable" => Ok(Tls::Off),
            "allow" | "prefer" => Ok(Tls::IfOffered),
            "require" => Ok(roots(false)?.map_or(Tls::Encrypted, Tls::VerifyAuthority)),
            "verify-ca" => Ok(roots(true)?.map_or(Tls::Encrypted, Tls::VerifyAuthority)),
            "verify-full" if self.get("host").is_none() => {
                Err(InvalidConninfo::new("`sslmode=verify-full` needs `host`: the certificate must name it"))
            }
            _ => Ok(roots(true)?.map_or(Tls::Encrypted, Tls::VerifyHost)),
        }
    }

    /// Zero and less mean "without limit" to libpq.
    fn connect_timeout(&self) -> Result<Option<Duration>, InvalidConninfo> {
        let Some(text) = self.get("connect_timeout") else { return Ok(None) };
        let seconds: i64 =
            text.parse().map_err(|_| InvalidConninfo::new("`connect_timeout` is not a whole number of seconds"))?;
        Ok(u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs))
    }
}

/// Debian's and PostgreSQL's own.
const SOCKETS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

fn default_socket(around: &dyn Surroundings) -> &'static str {
    if around.is_directory(Path::new(SOCKETS[0])) { SOCKETS[0] } else { SOCKETS[1] }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io;

    #[derive(Default)]
    struct Around {
        variables: BTreeMap<&'static str, String>,
        files: BTreeMap<&'static str, (&'static str, u32)>,
    }

    impl Surroundings for Around {
        fn variable(&self, name: &str) -> Option<String> {
            self.variables.get(name).cloned()
        }

        fn file(&self, path: &Path) -> io::Result<(Vec<u8>, u32)> {
            let found = path.to_str().and_then(|path| self.files.get(path));
            let (text, mode) = found.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
            Ok((text.as_bytes().to_vec(), *mode))
        }

        fn user_id(&self) -> u32 {
            1234
        }

        fn is_directory(&self, _path: &Path) -> bool {
            true
        }
    }

    fn around() -> Around {
        let passwd = "root:x:0:0:root:/root:/bin/sh\npostgres:x:1234:1234:,,,:/var/lib/postgresql:/bin/bash\n";
        Around { variables: BTreeMap::new(), files: [("/etc/passwd", (passwd, 0o644))].into() }
    }

    fn resolve(text: &str, around: &Around) -> Result<Conninfo, String> {
        let parsed = ConnectionString::parse(text).map_err(|error| error.to_string())?;
        parsed.resolve(around).map_err(|error| error.to_string())
    }

    #[test]
    fn given_beats_service_beats_environment_beats_default() {
        let mut around = around();
        around
            .files
            .insert("/services", ("[other]\nhost=no\n[prod]\n# x\n\nhost=db1\nport=6000\n[next]\nuser=no\n", 0o644));
        around.files.insert("/pgpass", ("# comment\n*:*:*:nobody:wrong\ndb1:6001:*:me:a\\:b:c\n", 0o600));
        for (name, value) in
            [("PGSERVICEFILE", "/services"), ("PGPASSFILE", "/pgpass"), ("PGHOST", "ignored"), ("PGUSER", "me")]
        {
            around.variables.insert(name, value.to_owned());
        }
        let resolved = resolve("service=prod port=6001", &around).unwrap();
        assert_eq!(resolved.describe(), "host `db1`, port 6001, database `me`, user `me`");
        assert_eq!(resolved.servers[0].password.as_deref(), Some("a:b:c"));
        around.files.insert("/pgpass", ("*:*:other:*:no\n*:*:replication:backup:yes\n", 0o600));
        let resolved = resolve("service=prod user=backup", &around).unwrap();
        assert_eq!(resolved.servers[0].password.as_deref(), Some("yes"));
        assert!(resolve("service=none", &around).is_err());
        around.files.insert("/services", ("[prod]\nhots=db1\n", 0o644));
        assert!(resolve("service=prod", &around).is_err());
    }

    #[test]
    fn the_user_is_the_operating_systems_and_empty_means_default() {
        let mut around = around();
        around.variables.insert("USER", "root".to_owned());
        for text in ["", "host='' port='' user='' dbname=''", "postgresql://"] {
            let described = resolve(text, &around).unwrap().describe();
            assert_eq!(
                described, "host `/var/run/postgresql`, port 5432, database `postgres`, user `postgres`",
                "{text}"
            );
        }
        // An empty value is not filled in from the environment.
        around.variables.insert("PGHOST", "db1".to_owned());
        assert_eq!(resolve("host=''", &around).unwrap().servers[0].host, "/var/run/postgresql");
        assert_eq!(resolve("", &around).unwrap().servers[0].host, "db1");
        // A user that is not listed is known by its variables.
        around.files.clear();
        around.variables.insert("HOME", "/home/x".to_owned());
        assert_eq!(resolve("", &around).unwrap().user, "root");
        around.variables.clear();
        assert!(resolve("", &around).is_err());
    }

    #[test]
    fn every_server_of_a_list_has_its_own_password() {
        let mut around = around();
        around
            .files
            .insert("/var/lib/postgresql/.pgpass", ("a:1:*:*:one\nlocalhost:2:*:*:two\n/x:3:*:*:three\n", 0o600));
        let resolved = resolve("host=a,/tmp,/x port=1,2,3", &around).unwrap();
        let passwords: Vec<_> = resolved.servers.iter().map(|server| server.password.clone().unwrap()).collect();
        assert_eq!(passwords, ["one", "two", "three"]);
        assert_eq!(resolve("host=a port=1 password=own", &around).unwrap().servers[0].password.as_deref(), Some("own"));
        // libpq does not take it from a file that others can read.
        around.files.insert("/var/lib/postgresql/.pgpass", ("a:1:*:*:one\n", 0o640));
        assert_eq!(resolve("host=a port=1", &around).unwrap().servers[0].password, None);
        for bad in ["host=a,b port=1,2,3", "host=a,b hostaddr=::1", "port=0", "port=70000", "port=x", "hostaddr=x"] {
            assert!(resolve(bad, &around).is_err(), "{bad}");
        }
        assert_eq!(resolve("hostaddr=127.0.0.1", &around).unwrap().servers[0].host, "127.0.0.1");
    }

    #[test]
    fn tls_is_never_weaker_than_libpqs() {
        let mut around = around();
        around.files.insert("/root.crt", ("PEM", 0o644));
        let tls = |text: &str, around: &Around| resolve(text, around).map(|resolved| resolved.tls);
        let pem = || Roots::Pem(b"PEM".to_vec());
        for (text, expected) in [
            ("host=h", Tls::IfOffered),
            ("host=h sslmode=disable", Tls::Off),
            ("host=h sslmode=require", Tls::Encrypted),
            ("host=h sslmode=require sslrootcert=/root.crt", Tls::VerifyAuthority(pem())),
            ("host=h sslmode=verify-ca sslrootcert=/root.crt", Tls::VerifyAuthority(pem())),
            ("host=h sslmode=verify-full sslrootcert=/root.crt", Tls::VerifyHost(pem())),
            ("host=h sslrootcert=system", Tls::VerifyHost(Roots::System)),
            // TLS is not for sockets, whatever is wished for.
            ("host=/tmp sslmode=verify-full", Tls::Off),
        ] {
            assert_eq!(tls(text, &around), Ok(expected), "{text}");
        }
        for bad in [
            "host=h sslmode=verify-ca",
            "host=h sslmode=verify-full",
            "host=h sslmode=require sslrootcert=/missing",
            "host=h sslmode=require sslrootcert=system",
            "hostaddr=::1 sslmode=verify-full sslrootcert=/root.crt",
            "host=h sslmode=strict",
            "host=h sslnegotiation=direct",
            "host=h ssl_min_protocol_version=TLSv1.3 ssl_max_protocol_version=TLSv1.2",
            "host=h sslmode=require channel_binding=strict",
            "host=h require_auth=scram-sha-256",
        ] {
            assert!(tls(bad, &around).is_err(), "{bad}");
        }
        around.files.insert("/var/lib/postgresql/.postgresql/root.crt", ("PEM", 0o644));
        assert_eq!(tls("host=h sslmode=require", &around), Ok(Tls::VerifyAuthority(pem())));
        assert_eq!(tls("host=h sslmode=verify-full", &around), Ok(Tls::VerifyHost(pem())));
        // A variable counts as much as a word.
        around.variables.insert("PGREQUIREAUTH", "none".to_owned());
        assert!(tls("host=h", &around).is_err());
    }

    #[test]
    fn what_went_astray_is_not_repeated() {
        for text in [
            "user=me;password=CANARY",
            "host=h;password=CANARY",
            "port=5432;CANARY",
            "sslmode=CANARY",
            "connect_timeout=CANARY",
            "hostaddr=CANARY",
            "service=CANARY",
            "user='me password=CANARY'",
            "sslrootcert=CANARY host=h sslmode=require",
            "me CANARY=x",
            "postgresql://me:CANARY@h:x/y",
        ] {
            let error = resolve(text, &around()).err().unwrap_or_else(|| panic!("{text}"));
            assert!(!error.contains("CANARY"), "{text}: {error}");
        }
        let described = resolve("dbname='x password=CANARY'", &around()).unwrap().describe();
        assert!(!described.contains("CANARY"), "{described}");
    }

    #[test]
    fn the_time_for_connecting_is_followed() {
        for (text, seconds) in
            [("", None), ("connect_timeout=0", None), ("connect_timeout=-1", None), ("connect_timeout=3", Some(3))]
        {
            let resolved = resolve(text, &around()).unwrap();
            assert_eq!(resolved.connect_timeout, seconds.map(Duration::from_secs), "{text}");
        }
    }
}
