module keelson.dev/tests/tools/cnitool

go 1.26

require github.com/containernetworking/cni v1.3.0
