"""
What a real guest does with its disk: one shell script each, run by the guest as root.

A script says what it saw by ``say NAME VALUE`` and ends with status 0 if all it checked held;
busybox's shell, with -e and -u.
"""

MIB = 1 << 20

BEFORE = """\
while [ ! -b /dev/vda ]; do sleep 0.05; done # behind a virtio-iommu it comes later
mount -t debugfs debugfs /sys/kernel/debug
disk=$(readlink -f /sys/block/vda/device)
say features "$(cat $disk/features)"
say segment "$(cat /sys/block/vda/queue/max_segment_size)"
say iommus "$(ls /sys/class/iommu)"
say group "$(cat $disk/../iommu_group/type 2>/dev/null)"
swiotlb() { cat /sys/kernel/debug/swiotlb/io_tlb_$1 2>/dev/null || echo; }
say slots "$(swiotlb nslabs)"
say window "$(dmesg | grep -o 'software IO TLB: mapped.*')"
"""
AFTER = """\
say slots_used "$(swiotlb used)"
say slots_high "$(swiotlb used_hiwater)"
say full "$(dmesg | grep -c 'swiotlb buffer is full' || true)"
say errors "$(dmesg | grep -c 'I/O error' || true)"
say faults "$(dmesg | grep -o 'DMAR: \\[.*fault addr.*')"
"""
"""
Around a script: what shows how the disk reaches the guest's memory.

Is the device's own address space used (features), what is bounced in one piece (segment), is
there an IOMMU and does it translate (iommus, group), how much is bounced (slots of 2 KiB).
"""

FILE_SYSTEM = """\
say serial "$(cat /sys/block/vda/serial)"
say sectors "$(cat /sys/block/vda/size)"
say queues "$(ls /sys/block/vda/mq | wc -l)"
say cache "$(cat /sys/block/vda/queue/write_cache)"
/sbin/mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
cd /mnt
writers=
for cpu in $(seq 0 $(($(nproc) - 1))); do
    taskset -c $cpu dd if=/dev/urandom of=file$cpu bs=64k count=32 conv=fsync 2>/dev/null &
    writers="$writers $!"
done
for writer in $writers; do wait $writer; done
sha256sum file* > /tmp/written
sync
echo 3 > /proc/sys/vm/drop_caches
sha256sum -c -s /tmp/written
for cpu in $(seq 0 $(($(nproc) - 1))); do
    taskset -c $cpu dd if=/dev/vda of=/dev/null bs=4k count=8 iflag=direct 2>/dev/null
    say file$cpu "$(grep file$cpu /tmp/written | cut -d ' ' -f 1)"
done
cd /
umount /mnt
/sbin/e2fsck -f -n /dev/vda
say interrupts "$(grep 'virtio0-req' /proc/interrupts |
    awk '{ n = 0; for (i = 2; i <= 1 + '$(nproc)'; i++) n += $i; printf "%d ", n }')"
"""
"""Format, write one file per CPU from that CPU, read them back past the caches, check."""

READERS = 16
READ_LENGTH = 2 * MIB
TOGETHER = f"""\
readers=
for reader in $(seq 0 {READERS - 1}); do
    dd if=/dev/vda bs=1M skip=$((2 * reader)) count=2 iflag=direct 2>/dev/null |
        sha256sum > /tmp/sum$reader &
    readers="$readers $!"
done
for reader in $readers; do wait $reader; done
for reader in $(seq 0 {READERS - 1}); do
    say sum$reader "$(cut -d ' ' -f 1 /tmp/sum$reader)"
done
"""
"""Read the whole disk past the caches, each part by a process of its own, all at once."""

DISCARDED = (2 * MIB, 1 * MIB)
PUNCHED = (4 * MIB, 1 * MIB)
ZEROED = (6 * MIB, 1 * MIB)
"""Offset and length, in bytes, of what :data:`DISCARD` gives up by each of three ways."""

DISCARD = f"""\
say discard_max "$(cat /sys/block/vda/queue/discard_max_bytes)"
say write_zeroes_max "$(cat /sys/block/vda/queue/write_zeroes_max_bytes)"
/sbin/blkdiscard -o {DISCARDED[0]} -l {DISCARDED[1]} /dev/vda
/sbin/fallocate -p -o {PUNCHED[0]} -l {PUNCHED[1]} /dev/vda
/sbin/fallocate -z -o {ZEROED[0]} -l {ZEROED[1]} /dev/vda
sync
say discards "$(awk '{{ print $12 }}' /sys/block/vda/stat)"
dd if=/dev/vda of=/tmp/start bs=1M count=8 iflag=direct 2>/dev/null
say read_back "$(sha256sum < /tmp/start | cut -d ' ' -f 1)"
"""
"""Discard, write zeroes that may unmap (a punched hole), write zeroes that must not."""

READ_ONLY = """\
say read_only "$(cat /sys/block/vda/ro)"
if dd if=/dev/zero of=/dev/vda bs=4k count=1 oflag=direct 2>/tmp/refusal; then
    say written yes
else
    say refused "$(head -n 1 /tmp/refusal)"
fi
dd if=/dev/vda of=/tmp/start bs=1M count=1 iflag=direct 2>/dev/null
say start "$(sha256sum < /tmp/start | cut -d ' ' -f 1)"
mount -t ext4 -o ro /dev/vda /mnt
say content "$(cat /mnt/greeting)"
umount /mnt
"""
"""Try to write a disk that is read-only, then read from the file system on it."""

RESET = """\
if [ "$(dd if=/dev/vda bs=512 count=1 2>/dev/null | head -c 5)" = first ]; then
    say sum "$(dd if=/dev/vda bs=1M skip=1 count=4 iflag=direct 2>/dev/null |
        sha256sum | cut -d ' ' -f 1)"
    say boot second
    exit 0
fi
dd if=/dev/urandom of=/tmp/data bs=1M count=4 2>/dev/null
dd if=/tmp/data of=/dev/vda bs=1M seek=1 conv=fsync 2>/dev/null
printf first | dd of=/dev/vda conv=sync,fsync 2>/dev/null
say sum "$(sha256sum < /tmp/data | cut -d ' ' -f 1)"
# The reset is to come in the middle of these: nobody waits for them, nobody checks them.
while :; do dd if=/dev/zero of=/dev/vda bs=1M seek=16 count=16 oflag=direct 2>/dev/null; done &
while :; do dd if=/dev/vda of=/dev/null bs=64k skip=256 count=256 iflag=direct 2>/dev/null; done &
sleep 0.2
say boot first
sleep 600
"""
"""Leave a mark and data on the disk, wait with I/O under way; at the second boot, check them."""

COPY_LENGTH = 220 * MIB
"""Bytes, one buffer of the guest's: more than it has before memory is added."""

MORE_MEMORY = f"""\
total() {{ awk '/MemTotal/ {{ print $2 }}' /proc/meminfo; }}
before=$(total)
while [ ! -e /tmp/enough ]; do
    dd if=/dev/vda of=/dev/null bs=64k count=256 iflag=direct 2>/dev/null
done &
say plug now
while [ $(total) -lt $((before + 200000)) ]; do
    for block in /sys/devices/system/memory/memory*/state; do
        grep -q offline $block && echo online > $block
    done
    sleep 0.1
done
touch /tmp/enough
wait
dd if=/dev/vda of=/dev/vda bs={COPY_LENGTH} count=1 seek=1 iflag=direct oflag=direct
"""
"""Read all the time while memory is added, then copy through a buffer that needs it."""

BUSY = """\
printf before | dd of=/dev/vda conv=sync,fsync 2>/dev/null
while :; do dd if=/dev/zero of=/dev/vda bs=1M seek=16 count=16 oflag=direct 2>/dev/null; done &
while :; do dd if=/dev/vda of=/dev/null bs=64k skip=256 count=256 iflag=direct 2>/dev/null; done &
sleep 0.2
say busy yes
sleep 600
"""
"""Keep requests in flight for ever."""


FILES = 32
KEEP_WRITING = f"""\
before=$(blockdev --getsize64 /dev/vda)
/sbin/mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /mnt
n=0
while [ $(blockdev --getsize64 /dev/vda) = $before ]; do
    dd if=/dev/urandom of=/mnt/file$((n % {FILES})) bs=64k count=4 conv=fsync 2>/dev/null
    dd if=/dev/zero of=/mnt/zero$((n % 4)) bs=64k count=8 conv=fsync 2>/dev/null
    n=$((n + 1))
    say beat $n
done
cd /mnt
sha256sum file* zero* > /tmp/written
cp /tmp/written written
sync
echo 3 > /proc/sys/vm/drop_caches
sha256sum -c -s /tmp/written
say written "$(sha256sum < /tmp/written | cut -d ' ' -f 1)"
cd /
umount /mnt
/sbin/e2fsck -f -n /dev/vda
"""
"""Write files with fsync, data and zeroes, until the disk has another size; check, and say what."""


def plugged(load: str) -> str:
    """Run *load* on a disk that comes, see it go and come again, and read all of it."""
    return f"""\
say ready yes
while [ ! -b /dev/vdb ]; do sleep 0.05; done
{load}
while [ -b /dev/vdb ]; do sleep 0.05; done
say gone yes
while [ ! -b /dev/vdb ]; do sleep 0.05; done
say sum "$(dd if=/dev/vdb bs=1M iflag=direct 2>/dev/null | sha256sum | cut -d ' ' -f 1)"
"""


def watched(load: str) -> str:
    """Run *load*, and say what size the disk has each time that it changes."""
    return f"""\
{load.rstrip()} &
before=$(blockdev --getsize64 /dev/vda)
while kill -0 $! 2>/dev/null; do
    now=$(blockdev --getsize64 /dev/vda)
    [ $now = $before ] || say bytes $now
    before=$now
    sleep 0.05
done
wait $!
"""
