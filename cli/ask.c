/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * One question to the daemon, and how a verb fails. This is the top where an
 * error is printed, once, and becomes an exit code. Called by every verb;
 * holds the connection only while it waits for the answer.
 */
#include "ask.h"

#include "findings.h"
#include "print.h"
#include "proto_json.h"
#include "text.h"
#include "vm.h"

#include <string.h>

int exit_code(int code)
{
	switch (code) {
	case -EINVAL:
		return CLI_USAGE;
	case -ECANCELED:
		return CLI_REFUSED;
	case -ENOENT:
		return CLI_NO_SUCH_VM;
	case -ECONNREFUSED:
	case -ECONNRESET:
	case -ETIMEDOUT:
		return CLI_UNREACHABLE;
	case -EACCES:
		return CLI_DENIED;
	default:
		return CLI_FAILED;
	}
}

static void print_json_error(const Upgraded__V1__Error *typed, const struct error *err)
{
	Upgraded__V1__Error local = UPGRADED__V1__ERROR__INIT;
	json_object *document = json_object_new_object(), *body;

	if (!typed) {
		local.text = err->text ?: (char *)"";
		local.hint = err->hint ?: (char *)"";
		typed = &local;
	}
	body = proto_json(&typed->base);
	/* A reason that no daemon gave has no code of the protocol. */
	if (body && typed == &local)
		json_object_object_add(body, "code", json_object_new_string("client"));
	json_object_object_add(document, "error", body);
	puts(proto_json_line(document));
	fflush(stdout);
	json_object_put(document);
}

int fail(const struct cli *cli, const struct client *c, const struct error *err)
{
	const Upgraded__V1__Error *typed = c && c->error ? c->error->error : NULL;

	fputs("upgradectl: ", stderr);
	print_wrapped(cli, stderr, strlen("upgradectl: "), err->text ?: strerror(-err->code));
	if (typed && typed->n_findings && !cli->json)
		findings_print(cli, stderr, typed->findings, typed->n_findings, false);
	if (err->hint) {
		fputs("  try: ", stderr);
		print_text(cli, stderr, STYLE_PLAIN, 0, err->hint);
		fputc('\n', stderr);
	}
	if (cli->json)
		print_json_error(typed, err);
	return exit_code(err->code);
}

int ask(const struct cli *cli, Envelope *request, Upgraded__V1__Envelope__BodyCase expected,
	int timeout_ms, Envelope **ret_answer)
{
	_cleanup_client_ struct client c = CLIENT_INIT;
	_cleanup_error_ struct error err = ERROR_INIT;
	int r;

	r = client_connect(&c, cli->socket, "upgradectl", &err);
	if (r >= 0)
		r = client_call(&c, request, expected, timeout_ms, ret_answer, &err);
	return r < 0 ? fail(cli, &c, &err) : CLI_DONE;
}

int ask_vm(const struct cli *cli, Envelope *request, int timeout_ms)
{
	_cleanup_envelope_ Envelope *answer = NULL;
	int r;

	r = ask(cli, request, UPGRADED__V1__ENVELOPE__BODY_VM, timeout_ms, &answer);
	if (r != CLI_DONE)
		return r;
	if (cli->json)
		return print_json(&answer->vm->base);
	vm_print(cli, answer->vm);
	return CLI_DONE;
}

int ask_done(const struct cli *cli, Envelope *request, const char *vm, const char *said)
{
	_cleanup_envelope_ Envelope *answer = NULL;
	int r;

	r = ask(cli, request, UPGRADED__V1__ENVELOPE__BODY_ACK, ASK_TIMEOUT_MS, &answer);
	if (r != CLI_DONE)
		return r;
	if (cli->json)
		return print_json(&answer->ack->base);
	print_text(cli, stdout, STYLE_BOLD, 0, vm);
	printf(": %s\n", said);
	return CLI_DONE;
}
