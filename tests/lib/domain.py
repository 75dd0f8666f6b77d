# SPDX-License-Identifier: GPL-2.0-or-later
"""The test guest under load as a domain of libvirt's, with the devices that one has."""

import json
import os
import pathlib
import re
import shutil
import struct
import subprocess
import tty
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from host import TOOLS, Guest, qemus, wait_until

LOG = pathlib.Path("/var/log/libvirt/qemu")
# Debian's virsh looks for libvirtd alone when it is not told whom to ask.
os.environ["LIBVIRT_DEFAULT_URI"] = "qemu:///system"


def virsh(*words, check=True, timeout=120):
    """What virsh says. A command that hangs has found a libvirt that hangs."""
    r = subprocess.run(["virsh", "-q", *map(str, words)], capture_output=True, text=True, timeout=timeout)
    if check and r.returncode:
        raise RuntimeError(f"virsh {' '.join(map(str, words))}: {r.stderr.strip()}")
    return r.stdout.strip()


def cgroup_of(pid):
    return pathlib.Path(f"/proc/{pid}/cgroup").read_text()


class Domain(Guest):
    def __init__(self, name, memory=320, smp=1, load_mem=64, machine_words="aux-ram-share=on", graphics=True, arguments=(), **options):
        super().__init__(name, memory=memory, smp=smp, load_mem=load_mem, **options)
        self.machine_words, self.arguments = machine_words, arguments
        self.graphics = "<graphics type='vnc' port='-1' autoport='yes'/>" if graphics else "<video><model type='none'/></video>"
        self.bridge = f"br-{name}"[:15]

    def prepare(self):
        super().prepare()
        # libvirt gives the VM's user what it finds in the definition: nothing of the share, then.
        for file in (self.kernel, self.initrd):
            shutil.copy(file, self.dir)
        self.dir.chmod(0o755)
        (self.dir / "disk.qcow2").rename(self.dir / "base.qcow2")
        subprocess.run([pathlib.Path(list(qemus().values())[-1]).with_name("qemu-img"), "create", "-q", "-f", "qcow2",
                        "-b", self.dir / "base.qcow2", "-F", "qcow2", self.dir / "disk.qcow2"], check=True)
        (self.dir / "cd.iso").write_bytes(bytes(1 << 20))
        for name in ("heartbeat", "report"):
            os.chmod(self.dir / name, 0o666)
        # The tap is libvirt's, on a bridge that has the address.
        subprocess.run(["ip", "link", "del", self.tap], check=True)
        subprocess.run(["ip", "link", "add", self.bridge, "type", "bridge"], check=True)
        subprocess.run(["ip", "addr", "add", f"{self.net}.1/24", "dev", self.bridge], check=True)
        subprocess.run(["ip", "link", "set", self.bridge, "up"], check=True)
        # The peer listens on the address, which was another interface's.
        self.peer.terminate()
        self.peer.wait(10)
        self.peer = subprocess.Popen([TOOLS / "loadpeer", "--listen", f"{self.net}.1:7777"],
                                     stdout=open(self.dir / "peer.json", "w"), stderr=subprocess.STDOUT)

    def definition(self, binary):
        """What is a FIFO is not given to libvirt, whose virtlogd writes files by itself."""
        d = self.dir
        # As JSON, as libvirt writes them: QEMU makes those after the others, and this one needs libvirt's bus.
        port = json.dumps({"driver": "virtserialport", "bus": "virtio-serial0.0", "nr": 9, "name": "org.upgraded.load", "chardev": "report"})
        pins = "".join(f"<vcpupin vcpu='{i}' cpuset='0'/>" for i in range(self.smp))
        append = (f"console=ttyS0 quiet no-kvmclock-vsyscall load.mem={self.load_mem} load.disk=/dev/vda "
                  f"load.net={self.net}.2/24 load.peer={self.net}.1:7777 load.hb_us={self.heartbeat_us} {self.cmdline}")
        return f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{self.name}</name>
  <memory unit='MiB'>{self.memory}</memory>
  <vcpu>{self.smp}</vcpu>
  <cputune>{pins}<emulatorpin cpuset='0'/></cputune>
  <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{d}/{pathlib.Path(self.kernel).name}</kernel>
    <initrd>{d}/{pathlib.Path(self.initrd).name}</initrd>
    <cmdline>{escape(append.strip())}</cmdline>
  </os>
  <features><acpi/></features>
  <cpu mode='host-passthrough' check='none'/>
  <devices>
    <emulator>{binary}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'/><source file='{d}/disk.qcow2'/><target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='cdrom'>
      <driver name='qemu' type='raw'/><source file='{d}/cd.iso'/><target dev='sda' bus='sata'/><readonly/>
    </disk>
    <interface type='bridge'>
      <source bridge='{self.bridge}'/><target dev='{self.tap}'/><model type='virtio'/><driver name='vhost'/>
    </interface>
    <serial type='pty'><log file='{d}/console.log' append='on'/></serial>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    {self.graphics}
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    <memballoon model='virtio'/>
  </devices>
  <qemu:commandline>
    <qemu:arg value='-machine'/><qemu:arg value='{self.machine_words}'/>
    {"".join(f"<qemu:arg value='{word}'/>" for word in self.arguments)}
    <qemu:arg value='-chardev'/><qemu:arg value='file,id=heartbeat,path={d}/heartbeat'/>
    <qemu:arg value='-device'/><qemu:arg value='isa-debugcon,iobase=0xe9,chardev=heartbeat'/>
    <qemu:arg value='-chardev'/><qemu:arg value='file,id=report,path={d}/report'/>
    <qemu:arg value='-device'/><qemu:arg value='{port}'/>
  </qemu:commandline>
</domain>
"""

    def start(self, binary, ready=150, tries=1):
        self.prepare()
        self.started = True
        (self.dir / "domain.xml").write_text(self.definition(binary))
        virsh("define", self.dir / "domain.xml")
        try:
            virsh("start", self.name)
            self.wait_ready(ready)
        except Exception:
            self.stop()
            raise
        return self

    def stop(self):
        if self.started:
            virsh("destroy", self.name, check=False)
            virsh("undefine", self.name, check=False)
        super().stop()
        subprocess.run(["ip", "link", "del", self.bridge], capture_output=True)

    def console(self, lines=20):
        """And what QEMU itself said."""
        try:
            words = (LOG / f"{self.name}.log").read_text(errors="replace").splitlines()[-lines:]
        except OSError as e:
            words = [str(e)]
        return super().console(lines) + "\nits QEMU:\n" + "\n".join(words)

    def echo(self, text):
        """What is typed on virsh console is shown there: the guest's terminal echoes it."""
        ours, theirs = os.openpty()
        tty.setraw(theirs)  # or the echo would be this one's
        os.set_blocking(ours, False)
        console = subprocess.Popen(["virsh", "console", self.name, "--force"], stdin=theirs, stdout=theirs, stderr=theirs)
        said = bytearray()
        os.close(theirs)

        def shows(words):
            try:
                said.extend(os.read(ours, 4096))
            except OSError:  # nothing yet, or nobody any more
                if console.poll() is not None:
                    raise RuntimeError(f"virsh console {self.name} ended: {said.decode()}") from None
            return words.encode() in said
        try:
            wait_until(lambda: shows("Escape character"), 20, said.decode)
            os.write(ours, f"{text}\n".encode())
            wait_until(lambda: shows(text), 20, lambda: f"an echo: {said.decode()}")
        finally:
            console.kill()  # it does not end by SIGTERM
            console.wait(10)
            os.close(ours)

    def images(self):
        """The file of each drive, and those behind it, as QEMU has them open."""
        answer = json.loads(virsh("qemu-monitor-command", self.name, '{"execute":"query-block"}'))
        found = {}
        for drive in answer["return"]:
            image, files = drive.get("inserted", {}).get("image"), []
            while image:
                files.append(image["filename"])
                image = image.get("backing-image")
            found[drive.get("qdev") or drive["device"]] = files
        return found

    def vcpus(self):
        """{number: /proc/PID/task/TID} of their threads."""
        found = {}
        for task in pathlib.Path(f"/proc/{self.pid()}/task").iterdir():
            if comm := re.fullmatch(r"CPU (\d+)/KVM", (task / "comm").read_text().strip()):
                found[int(comm[1])] = task
        return found

    def pinning(self):
        """{number: where the vCPU's thread may run, its cgroup's name and where those in that may run}. On a host with
        one processor it is the last that differs from a thread without a pin, for which nobody has written it."""
        found = {}
        for number, task in self.vcpus().items():
            cgroup = pathlib.Path("/sys/fs/cgroup" + (task / "cgroup").read_text().strip().removeprefix("0::"))
            allowed = re.search(r"^Cpus_allowed_list:\s*(\S+)", (task / "status").read_text(), re.M)[1]
            found[number] = (allowed, cgroup.name, (cgroup / "cpuset.cpus").read_text().strip())
        return found

    def state(self):
        return virsh("domstate", self.name, "--reason")

    def scope(self):
        """The cgroup that libvirt made for it."""
        text = cgroup_of(self.pid()).strip()
        return pathlib.Path("/sys/fs/cgroup" + text.removeprefix("0::").split(".scope")[0] + ".scope")

    def emulators(self):
        """Of the domain that runs, and of its definition."""
        return tuple(ElementTree.fromstring(virsh("dumpxml", self.name, *words)).findtext("devices/emulator")
                     for words in ((), ("--inactive",)))


def halting_kernel():
    """A multiboot image that halts for good. Firmware that finds nothing to boot has a timer, which twenty of would be felt."""
    load, flags, code = 0x100000, 1 << 16, b"\xfa\xf4\xeb\xfd"  # cli; hlt; jmp to the hlt
    header = struct.pack("<8I", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF, load, load, 0, 0, load + 32)
    return header + code.ljust(4096, b"\0")


class Small:
    """A domain that costs next to nothing."""

    def __init__(self, name, private=False):
        self.name, self.private = name, private
        self.file, self.kernel = pathlib.Path(f"/var/tmp/{name}.xml"), pathlib.Path(f"/var/tmp/{name}.bin")

    def start(self, binary):
        shared = "" if self.private else "<memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>"
        self.kernel.write_bytes(halting_kernel())
        self.file.write_text(f"""<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>{self.name}</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>{shared}
  <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{self.kernel}</kernel></os>
  <cpu mode='host-passthrough' check='none'/>
  <devices><emulator>{binary}</emulator><memballoon model='virtio'/></devices>
  <qemu:commandline><qemu:arg value='-machine'/><qemu:arg value='aux-ram-share=on'/></qemu:commandline>
</domain>
""")
        virsh("create", self.file, timeout=300)
        return self

    def pid(self):
        return int(pathlib.Path(f"/run/libvirt/qemu/{self.name}.pid").read_text())

    def cgroup(self):
        return cgroup_of(self.pid())

    def stop(self):
        virsh("destroy", self.name, check=False)
        self.file.unlink(missing_ok=True)
        self.kernel.unlink(missing_ok=True)
