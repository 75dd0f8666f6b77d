/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgraded-libvirt-starting: an ExecStartPre= of libvirt's daemon. Asks upgraded whether
 * what that is going to read of its domains is right, and waits until it is. An upgraded
 * that dies meanwhile has left that to the next one, which its socket starts: so that is
 * asked again. Nothing keeps libvirt from starting when none answers: it exits with 0
 * then, and says so.
 */
#include "cleanup.h"
#include "client.h"
#include "clock.h"

#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* An upgrade is over within this, whatever happens to it; systemd gives a start 90 s. */
#define TIMEOUT_MS 80000

#define AGAIN_US 100000

static int ask(int64_t deadline, struct error *err)
{
	_cleanup_client_ struct client c = CLIENT_INIT;
	_cleanup_envelope_ Envelope *answer = NULL;
	Upgraded__V1__LibvirtStarting starting = UPGRADED__V1__LIBVIRT_STARTING__INIT;
	Envelope request = ENVELOPE_INIT;
	int64_t left = deadline - now_ms();
	int r;

	request.body_case = UPGRADED__V1__ENVELOPE__BODY_LIBVIRT_STARTING;
	request.libvirt_starting = &starting;
	r = client_connect(&c, CLIENT_CONTROL_SOCKET, "upgraded-libvirt-starting", err);
	if (r < 0)
		return r;
	return client_call(&c, &request, UPGRADED__V1__ENVELOPE__BODY_ACK, left > 0 ? (int)left : 0,
			   &answer, err);
}

int main(void)
{
	_cleanup_error_ struct error err = ERROR_INIT;
	int64_t deadline = now_ms() + TIMEOUT_MS;
	int r;

	while ((r = ask(deadline, &err)) == -ECONNRESET && now_ms() < deadline) {
		error_clear(&err);
		usleep(AGAIN_US);
	}
	if (r < 0)
		fprintf(stderr, "upgraded was not asked: %s\n",
			err.text ? err.text : "out of memory");
	return 0;
}
