/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What an upgrade of one VM and of many have in common: the request, and the signals
 * of whoever waits for the end. Called by verb_upgrade.c and fleet.c; owns nothing.
 */
#include "upgrade_request.h"

#include "clock.h"
#include <signal.h>
#include <sys/signalfd.h>
#include <time.h>

int upgrade_request(struct client *c, const struct cli *cli, char *vm,
		    const struct upgrade_how *how, struct error *err)
{
	Upgraded__V1__UpgradeRequest upgrade = UPGRADED__V1__UPGRADE_REQUEST__INIT;
	Envelope request = ENVELOPE_INIT;
	int r;

	upgrade.name = vm;
	if (how->vmm)
		upgrade.binary = how->vmm;
	upgrade.max_blackout_us = how->blackout_us;
	upgrade.phase_timeout_us = how->timeout_us;
	upgrade.no_stage2 = how->no_stage2;
	upgrade.set_emulator = how->set_emulator;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_UPGRADE;
	request.upgrade = &upgrade;
	r = client_connect(c, cli->socket, "upgradectl", err);
	return r < 0 ? r : client_send(c, &request, err);
}

int upgrade_signals(struct error *err)
{
	sigset_t set;
	int fd;

	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return error_errno(err, -errno, "cannot block signals");
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return error_errno(err, -errno, "cannot make a signalfd");
	return fd;
}

bool upgrade_signalled(int signals)
{
	struct signalfd_siginfo info;

	return read(signals, &info, sizeof(info)) == (ssize_t)sizeof(info);
}

time_t upgrade_now_s(void)
{
	return (time_t)(now_us() / 1000000);
}
