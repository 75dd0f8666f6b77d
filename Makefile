# SPDX-License-Identifier: GPL-2.0-or-later
# The front door. Real work is done by meson and by the scripts named here.

BUILD := build/user
ASAN := build/asan
TSAN := build/tsan
NINJA := ninja --quiet

.DEFAULT_GOAL := help
.PHONY: help build install deb rpm demo check check-unit check-valgrind check-tsan check-native check-fault check-docs check-packages check-testbed check-integration check-libvirt check-systemd \
	check-tiers bench \
	kernel kernel-series check-kernel check-kernel-nightly bench-kernel fuzz \
	qemu qemu-series check-qemu testbed testbed-shell testbed-install clean

help: ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-20s %s\n", $$1, $$2 }' Makefile

$(BUILD)/build.ninja:
	@testbed/deps build
	@meson setup $(BUILD) >/dev/null

$(ASAN)/build.ninja:
	@testbed/deps build
	@meson setup $(ASAN) -Db_sanitize=address,undefined -Db_lundef=false -Dbuildtype=debug \
		-Dwerror=true >/dev/null

build: $(BUILD)/build.ninja ## build the daemon, the worker and upgradectl
	@$(NINJA) -C $(BUILD)

install: build ## install into DESTDIR (meson install)
	@meson install -C $(BUILD) --no-rebuild

deb: ## Debian packages, source and binary, into build/deb
	@packaging/deb

rpm: ## RPM packages, source and binary, into build/rpm (on Fedora and its relatives)
	@packaging/rpm/build

demo: ## upgrade a Linux guest under load from one QEMU to another, in the emulated host (TIER=stage2, gmem or memfd)
	@testbed/deps build testbed kernel
	@tests/demo/run $(TIER)

check: ## the tests, but for those that take hours; ends with "N passed, N failed, N skipped"
	@testbed/deps build testbed kernel fuzz
	@tests/check

check-unit: $(ASAN)/build.ninja ## the unit tests only, with the sanitizers
	@tests/check unit

check-valgrind: ## the unit tests under valgrind: accesses, leaks, descriptors
	@testbed/deps build testbed
	@$(MAKE) -s build
	@tests/unit/valgrind

check-tsan: ## the threaded VMM of the tests, upgraded and killed in every phase, with ThreadSanitizer
	@testbed/deps build
	@[ -e $(TSAN)/build.ninja ] || meson setup $(TSAN) -Db_sanitize=thread -Db_lundef=false -Dbuildtype=debug >/dev/null
	@$(NINJA) -C $(TSAN)
	@UPGRADED_BUILD=$(CURDIR)/$(TSAN) TSAN_OPTIONS=halt_on_error=1 python3 tests/vmm/test_native.py

fuzz: ## search for inputs that break us, SECONDS=60 by each fuzzer; longer finds more
	@tests/fuzz/run --seconds $(or $(SECONDS),60)

check-native: ## VMMs with libupgraded: a tiny one, upgraded and killed in every phase
	@testbed/deps build testbed kernel
	@tests/check native

check-fault: ## every process of an upgrade hit by every fault at every boundary, a sample of it on QEMU; 1,000 random kills; 200 VMs at once; upgraded itself replaced
	@testbed/deps build testbed kernel
	@tests/fault/run
	@tests/fault/random
	@tests/fault/many
	@tests/fault/previous
	@tests/fault/qemu memfd
	@tests/fault/qemu stage2

check-packages: ## the Debian packages and the quick start, on a Debian that has never seen them, in the emulated host
	@testbed/deps build testbed package
	@tests/packages/run

check-docs: ## what the documentation says is tried: commands, links, metrics, the page of a report in a browser
	@testbed/deps build docs
	@$(MAKE) -s build
	@tests/docs/run --screenshot

check-testbed: ## the emulated host's own tests only
	@testbed/deps build testbed
	@tests/check testbed guest

check-integration: ## upgrades, rollbacks and refusals in the emulated host only
	@testbed/deps build testbed
	@tests/check integration custody

check-kernel: ## the kernel extension: its tests, and the kernel's own, in a kernel full of assertions
	@testbed/deps build testbed kernel
	@tests/check kernel

check-kernel-nightly: ## the same with eleven minutes of stress in place of one
	@testbed/deps build testbed kernel
	@UPGRADED_STRESS_SECONDS=660 tests/check kernel

check-libvirt: ## domains of an unpatched libvirt, of the newest, of a modular one, and in the tier stage2, upgraded in the emulated host
	@testbed/deps build testbed
	@tests/check libvirt

check-systemd: ## units whose main process is a VMM, in the emulated host
	@testbed/deps build testbed
	@tests/check systemd

check-tiers: ## the memory tiers gmem and stage2: patched QEMUs, with and without the kernel extension, every kind of guest
	@testbed/deps build testbed kernel
	@UPGRADED_TIER_ROUNDS=$(or $(UPGRADED_TIER_ROUNDS),50) tests/check tiers

bench: ## our blackout against a bare cpr-transfer script's, into build/bench/results.json
	@testbed/deps build testbed
	@tests/bench/run

bench-kernel: ## the kernel extension against ownership alone, into build/bench/kernel.json
	@testbed/deps testbed kernel
	@tests/bench/kernel

kernel: ## the kernel with our extension, for testbed/run --kernel; prints where it is
	@testbed/deps testbed
	@testbed/kernel --patched

kernel-series: ## our extension as patches for git am, proven to apply (BUILD_EACH=1: and to compile one by one)
	@testbed/deps testbed kernel
	@kernel/export $(if $(BUILD_EACH),--build)

qemu: ## the patched QEMU (VERSION=10.0: of an older release); prints where it is
	@testbed/deps testbed
	@testbed/qemu $(if $(VERSION),--version $(VERSION))

qemu-series: ## apply the QEMU patches to the releases' sources, export them into build/qemu-series
	@testbed/deps testbed
	@testbed/qemu --series

check-qemu: ## the patched QEMU's own tests, and hand-overs of a guest without upgraded
	@testbed/deps build testbed
	@tests/qemu/run
	@tests/qemu/run --qtest

testbed: ## kernel and root file system of the emulated host
	@testbed/deps testbed
	@testbed/kernel >/dev/null
	@testbed/rootfs >/dev/null

testbed-shell: ## an interactive shell in the emulated host
	@testbed/deps build testbed
	@testbed/shell

# What testbed/run lays over the emulated host's root file system.
testbed-install: build build/testbed-extra/load.img
	@rm -rf build/destdir.new
	@meson install -C $(BUILD) --no-rebuild --quiet --destdir $(CURDIR)/build/destdir.new
	@mkdir -p build/destdir.new/etc/systemd/system/sockets.target.wants build/testbed-extra
	@ln -s /usr/lib/systemd/system/upgraded.socket \
		build/destdir.new/etc/systemd/system/sockets.target.wants/
	@rm -rf build/destdir && mv build/destdir.new build/destdir

build/testbed-extra/load.img: tests/guest/mkinitrd $(wildcard tests/guest/load/*)
	@tests/guest/mkinitrd $@

clean: ## remove build/ (the cache of kernel and root file system stays)
	@rm -rf build
