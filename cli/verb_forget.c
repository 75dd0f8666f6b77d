/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * upgradectl forget: drops a VM from the daemon's list. Touches no process.
 */
#include "ask.h"
#include "options.h"

static const char doc[] = "Drop VM from the list of known ones. Its process is left alone, and "
			  "\"adopt\" takes it back.";

int verb_forget(struct cli *cli, int argc, char **argv)
{
	Upgraded__V1__ForgetRequest forget = UPGRADED__V1__FORGET_REQUEST__INIT;
	struct one_vm args = { .cli = cli };
	Envelope request = ENVELOPE_INIT;

	options_one_vm(&args, false, doc, argc, argv);
	forget.name = args.name;
	request.body_case = UPGRADED__V1__ENVELOPE__BODY_FORGET;
	request.forget = &forget;
	return ask_done(cli, &request, args.name, "forgotten; its process was left alone");
}
