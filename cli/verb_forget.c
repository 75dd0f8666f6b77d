/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl forget: drops a VM from the daemon's list. Touches no process.
 */
#include "ask.h"
#include "options.h"
#include "print.h"

static const char doc[] = "Drop VM from the list of known ones. Its process is left alone, and "
			  "\"adopt\" takes it back.";

int verb_forget(struct cli *cli, int argc, char **argv)
{
	_cleanup_envelope_ Envelope *answer = NULL;
	Upgraded__V1__ForgetRequest forget = UPGRADED__V1__FORGET_REQUEST__INIT;
	struct one_vm args = { .cli = cli };
	Envelope request = ENVELOPE_INIT;
	int r;

	options_one_vm(&args, false, doc, argc, argv);
	forget.name = args.name;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_FORGET;
	request.forget = &forget;
	r = ask(cli, &request, UPGRADED__V1__ENVELOPE__BODY_ACK, ASK_TIMEOUT_MS, &answer);
	if (r != CLI_DONE)
		return r;
	if (cli->json)
		return print_json(&answer->ack->base);
	print_text(cli, stdout, STYLE_BOLD, 0, args.name);
	puts(": forgotten; its process was left alone");
	return CLI_DONE;
}
