//! A stand-in for kubelet and provisioner on one machine.

#![allow(dead_code)]
mod cgroup;
mod containerd;
mod cri;
mod device_manager;
mod image;
mod keelson;
mod lab;
mod layout;
mod manifest;
mod process;
mod qos;
mod quantity;
mod sweep;
mod volumes;
