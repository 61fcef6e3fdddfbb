//! A network namespace that plays the host, with the real executables.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use keelson_testkit::Netns;
use serde_json::{Value, json};

/// A node in miniature.
pub(crate) struct Node {
    pub(crate) host: Netns,
    directory: tempfile::TempDir,
}

impl Node {
    pub(crate) fn new() -> Self {
        let node = Self { host: Netns::new().unwrap(), directory: tempfile::tempdir().unwrap() };
        fs::create_dir(node.path("bin")).unwrap();
        let keelson = Path::new(env!("CARGO_BIN_EXE_keelson"));
        let plugin = keelson.parent().unwrap().join("keelson-cni");
        assert!(plugin.is_file(), "{} is missing: cargo build -p keelson-cni", plugin.display());
        for program in [keelson, &plugin] {
            let place = node.path("bin").join(program.file_name().unwrap());
            fs::hard_link(program, &place).or_else(|_| fs::copy(program, &place).map(drop)).unwrap();
        }
        let here = node.directory.path().display();
        fs::write(
            node.path("config.yaml"),
            format!(
                "apiVersion: keelson.dev/v1alpha1\n\
                 kind: NodeConfig\n\
                 nodeName: node-a\n\
                 observability: {{address: \"127.0.0.1:0\"}}\n\
                 stateDir: {here}/state\n\
                 network: {{name: test, bridge: kt0, ranges: [10.77.0.0/24, \"fd77::/64\"], confDir: {here}/conf, binDir: {here}/opt}}\n"
            ),
        )
        .unwrap();
        node.shell("ip link set lo up");
        node
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What `keelson run --only network` writes for the runtime; the network then has it as it is.
    pub(crate) fn plugin_config(&self) -> Value {
        json!({
            "cniVersion": "1.1.0",
            "name": "test",
            "type": "keelson-cni",
            "bridge": "kt0",
            "isDefaultGateway": true,
            "ipMasq": true,
            "hairpinMode": true,
            "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
            "ipam": {
                "type": "keelson-cni",
                "ranges": [[{"subnet": "10.77.0.0/24"}], [{"subnet": "fd77::/64"}]],
                "dataDir": self.path("state/network"),
            },
        })
    }

    pub(crate) fn call(&self, verb: &str, id: &str, pod: &Netns, config: &Value) {
        let mut child = self
            .host
            .command(self.path("bin/keelson-cni"))
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", id)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", "/nonexistent")
            .env("CNI_NETNS", pod.path())
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=pod-{id};K8S_POD_UID=u"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(config.to_string().as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }

    /// A Pod with the first host port if `ports`.
    pub(crate) fn pod(&self, id: &str, ports: bool) -> Netns {
        let mut config = self.plugin_config();
        if !ports {
            config.as_object_mut().unwrap().remove("runtimeConfig");
        }
        self.pod_with(id, &config)
    }

    pub(crate) fn pod_with(&self, id: &str, config: &Value) -> Netns {
        let pod = Netns::new().unwrap();
        self.call("ADD", id, &pod, config);
        pod
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.command(self.path("bin/keelson"));
        command.args(arguments).arg("--config").arg(self.path("config.yaml")).env_remove("RUST_LOG");
        command
    }

    pub(crate) fn keelson(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// The answer in JSON, and the exit code.
    #[track_caller]
    pub(crate) fn ask(&self, arguments: &[&str]) -> (Value, i32) {
        let mut all = [arguments, &["-o", "json"]].concat();
        if !arguments.contains(&"--network") {
            // Another store at the usual places of this machine is none of ours.
            all.extend(["--network", "test"]);
        }
        let output = self.keelson(&all);
        let answer = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
        (answer, output.status.code().unwrap())
    }

    /// Runs a line of shell on the host; `keelson` is ours, with our config.
    #[track_caller]
    pub(crate) fn shell(&self, line: &str) {
        let line = line.replace("keelson network", &format!("{} network", self.path("keelson.sh").display()));
        fs::write(
            self.path("keelson.sh"),
            format!(
                "#!/bin/sh\nexec {} \"$@\" --config {}\n",
                self.path("bin/keelson").display(),
                self.path("config.yaml").display()
            ),
        )
        .unwrap();
        fs::set_permissions(self.path("keelson.sh"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let output = self.host.command("sh").args(["-c", &line]).output().unwrap();
        assert!(output.status.success(), "{line}: {output:?}");
    }

    /// The doctor's findings, without those that this machine's kernel makes for every node, and without the files that
    /// nobody installed here. The exit code has to say whether there is an error.
    #[track_caller]
    pub(crate) fn findings(&self) -> Vec<Value> {
        let (findings, status) = self.ask(&["network", "doctor"]);
        let findings = findings.as_array().unwrap().clone();
        let has_error = findings.iter().any(|finding| finding["severity"] == "error");
        assert_eq!(status, i32::from(has_error), "{findings:?}");
        let ignored = ["br-netfilter", "not-installed", "legacy-iptables"];
        findings.into_iter().filter(|finding| !ignored.contains(&finding["check"].as_str().unwrap())).collect()
    }

    pub(crate) fn checks(&self) -> Vec<String> {
        self.findings().iter().map(|finding| finding["check"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    pub(crate) fn link_of(&self, id: &str) -> String {
        let (shown, _) = self.ask(&["network", "show", id]);
        shown[0]["attachment"]["hostInterface"].as_str().unwrap().to_owned()
    }

    /// Where the network's records are.
    pub(crate) fn records(&self) -> PathBuf {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        self.path("state/network/test").join(boot.trim_end()).join("attachments")
    }

    /// The nftables rules of the host, without what differs from time to time.
    pub(crate) fn rules(&self) -> String {
        let output = self.host.command("nft").args(["-s", "list", "ruleset"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }
}
