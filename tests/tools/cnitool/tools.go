//go:build tools

// Package tools pins the real programs that Keelson is tested against.
package tools

import (
	_ "github.com/containernetworking/cni/cnitool"
)
