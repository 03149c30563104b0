// Plays `memcg-monitor listen`: prints its first arguments, each `out:TEXT` or `err:TEXT`, then
// ends with the code of `exit:CODE`; without one it goes on until it is killed.
for (const word of process.argv.slice(2)) {
  const [kind, text] = [word.slice(0, 4), word.slice(4)]
  if (kind === 'out:') process.stdout.write(`${text}\n`)
  else if (kind === 'err:') process.stderr.write(`${text}\n`)
  else if (kind === 'exit') process.exitCode = Number(text.slice(1))
  else break
}
if (!process.argv.some((word) => word.startsWith('exit:'))) setInterval(() => {}, 1 << 30)
