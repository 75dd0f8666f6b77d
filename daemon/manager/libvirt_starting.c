/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgraded-libvirt-starting: an ExecStartPre= of libvirt's daemon. Asks upgraded whether
 * what that is going to read of its domains is right, and waits until it is. Nothing
 * keeps libvirt from starting when upgraded does not answer: it exits with 0 then, and
 * says so.
 */
#include "cleanup.h"
#include "client.h"

#include <stdio.h>

/* An upgrade is over within this, whatever happens to it; systemd gives a start 90 s. */
#define TIMEOUT_MS 80000

int main(void)
{
	_cleanup_client_ struct client c = CLIENT_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	_cleanup_envelope_ Envelope *answer = NULL;
	Upgraded__V1__LibvirtStarting starting = UPGRADED__V1__LIBVIRT_STARTING__INIT;
	Envelope request = ENVELOPE_INIT;
	int r;

	request.body_case = UPGRADED__V1__ENVELOPE__BODY_LIBVIRT_STARTING;
	request.libvirt_starting = &starting;
	r = client_connect(&c, CLIENT_CONTROL_SOCKET, "upgraded-libvirt-starting", &err);
	if (r >= 0)
		r = client_call(&c, &request, UPGRADED__V1__ENVELOPE__BODY_ACK, TIMEOUT_MS, &answer,
				&err);
	if (r < 0)
		fprintf(stderr, "upgraded was not asked: %s\n",
			err.text ? err.text : "out of memory");
	return 0;
}
