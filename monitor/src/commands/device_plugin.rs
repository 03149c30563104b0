//! The command `memcg-monitor device-plugin`: gives pods the registration socket by the kubelet.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use memcg_monitor::device_plugin::{self, PluginOptions};
use tokio::signal::unix::{SignalKind, signal};

use crate::cli;

pub fn run(options: &cli::DevicePlugin) -> Result<ExitCode> {
    let options = PluginOptions {
        directory: options.plugins.clone(),
        resource: options.resource.clone(),
        count: options.count,
        shared: options.share.clone(),
    };
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start tokio")?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        // The first process of a container has no default action for them.
        let mut terminate = signal(SignalKind::terminate()).context("cannot catch SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot catch SIGINT")?;
        super::unblock_signals()?;
        tokio::select! {
            served = device_plugin::serve(&options) => served.context("the device plugin cannot go on"),
            _ = terminate.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}
