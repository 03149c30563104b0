// The vectors that all clients share, and registrations against a player of the program.
import assert from 'node:assert/strict'
import { execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import test from 'node:test'
import { fileURLToPath } from 'node:url'

import * as client from '../index.mjs'
import * as wire from '../wire.mjs'

const vectors = JSON.parse(readFileSync(new URL('../../vectors.json', import.meta.url), 'utf8'))
const kinds = { refused: client.RefusedError, ended: client.EndedError, 'not understood': client.AnswerError }

function each(kind, check) {
  assert.ok(vectors[kind].length > 0)
  for (const vector of vectors[kind]) check(vector)
}

test('requests', () => {
  each('requests', ({ make, level, mode, file, args, direction, hysteresis, exact, on }) => {
    const options = Object.fromEntries(
      Object.entries({ direction, hysteresis, exact, on }).filter(([, value]) => value !== undefined),
    )
    const request = make === 'pressure' ? client.pressure(level, mode) : client[make](...(level ? [level, options] : []))
    assert.deepEqual(request, { file, args })
    const words = wire.argumentsOf('/g', request, { socket: '/s' })
    assert.deepEqual(words.slice(-1 - (args !== '')), args === '' ? [`/g/${file}`] : [`/g/${file}`, args])
  })
})

test('refusals, as the program prints them', () => {
  each('answers', ({ outcome, errno, message }) => {
    // An errno without a text has no name that could be printed.
    if (outcome !== 'refused' || message === '') return
    const error = wire.failure(`memcg-monitor: cannot register "x" on /a/b: ${message}\n`)
    assert.ok(error instanceof client.RefusedError)
    assert.deepEqual([error.errno, error.message], [errno, message])
  })
})

test('events', () => {
  each('events', ({ packet, outcome, event, errno, message }) => {
    if (outcome === 'event') {
      assert.deepEqual(wire.decode(packet), event)
    } else if (outcome === 'listening') {
      assert.equal(wire.decode(packet), null)
    } else {
      assert.throws(
        () => wire.decode(packet),
        (error) => error instanceof kinds[outcome] && error.errno === errno && (!message || error.message === message),
        packet,
      )
    }
  })
})

const player = fileURLToPath(new URL('../player.mjs', import.meta.url))
const playing = (...words) => ({ program: [process.execPath, player, ...words] })
const REMOVED = 'out:/g/memory.usage_in_bytes 8M: the group was removed'
const CROSSED = 'out:/g/memory.usage_in_bytes 8M: crossed 8M upwards, usage 8.2M'
const DETAIL = 'out:  killed sh (process 7) of /g'
const event = (kind) => `out:{"time":1.0,"cgroup":"/a","event":"${kind}","signals":1}`

test('signals are counted until the group is gone', async () => {
  const options = playing('out:registered', CROSSED, DETAIL, CROSSED, REMOVED, 'exit:0')
  const registration = await client.register('/g', client.threshold('8M'), options)
  let signals = 0
  for await (const some of registration) signals += some
  // The removal's own signal is in none of the lines.
  assert.ok(signals <= 2)
  assert.equal(await registration.wait(), null)
})

test('a wait has a time-out, and the agent\'s end is seen once', async () => {
  const registration = await client.register('/g', client.oom(), playing('out:registered'))
  await assert.rejects(registration.wait({ timeout: 1 }), client.TimeoutError)
  registration.close()
  await assert.rejects(registration.wait(), client.MonitorError)
  const ended = 'err:memcg-monitor: the agent ended; signals go on once an agent is back'
  const other = await client.register('/g', client.oom(), playing('out:registered', ended))
  await assert.rejects(other.wait(), client.EndedError)
  await assert.rejects(other.wait({ timeout: 1 }), client.TimeoutError)
  other.close()
})

test('a time-out has no upper bound', async () => {
  const month = 30 * 24 * 3600 * 1000
  const real = globalThis.setTimeout
  for (const timeout of [month, Infinity]) {
    const registration = await client.register('/g', client.oom(), playing('out:registered'))
    const delays = []
    // Timers that end at once; the third is the last.
    globalThis.setTimeout = (call, delay) => {
      delays.push(delay)
      return real(delays.length < 3 ? call : () => registration.close(), 0)
    }
    try {
      const wait = registration.wait({ timeout })
      if (timeout === Infinity) registration.close()
      await assert.rejects(wait, { name: 'MonitorError', message: 'the registration is closed' })
    } finally {
      globalThis.setTimeout = real
      registration.close()
    }
    assert.deepEqual(delays, timeout === Infinity ? [] : Array(3).fill(2 ** 31 - 1))
  }
})

// Resolves when a FIFO has no writer any more, to what was written.
async function written(fifo) {
  const cat = spawn('cat', [fifo])
  let text = ''
  cat.stdout.on('data', (some) => (text += some))
  await once(cat, 'close')
  return text
}

test('a program that ends takes its children along', { timeout: 60_000 }, async () => {
  const directory = mkdtempSync(join(tmpdir(), 'memcg-monitor-test-'))
  const fifo = join(directory, 'fifo')
  execFileSync('mkfifo', [fifo])
  // The child holds the FIFO open while it lives.
  const shell = ['sh', '-c', 'exec 3>"$0"; echo "$$" >&3; exec "$@"', fifo]
  const options = { program: [...shell, process.execPath, player, 'out:registered'] }
  const index = JSON.stringify(new URL('../index.mjs', import.meta.url))
  for (const ending of ['process.exit(3)', "throw new Error('a bug')"]) {
    const ended = written(fifo)
    const script = `import { oom, register } from ${index}
      await register('/g', oom(), ${JSON.stringify(options)})
      ${ending}`
    const program = spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: 'ignore' })
    const [code] = await once(program, 'close')
    assert.equal(code, ending.startsWith('throw') ? 1 : 3)
    assert.match(await ended, /^[0-9]+\n$/)
  }
  rmSync(directory, { recursive: true })
})

test('many registrations have one listener of the exit', async () => {
  const before = process.listenerCount('exit')
  const several = [1, 2, 3].map(() => client.register('/g', client.oom(), playing('out:registered')))
  for (const registration of await Promise.all(several)) {
    assert.ok(process.listenerCount('exit') <= before + 1)
    registration.close()
  }
})

test('the declarations name what is exported', () => {
  const text = readFileSync(new URL('../index.d.ts', import.meta.url), 'utf8')
  const declared = [...text.matchAll(/^export declare (?:const|function|class) (\w+)/gm)].map(([, name]) => name)
  assert.deepEqual(declared.sort(), Object.keys(client).sort())
})

test('a refusal carries errno and text', async () => {
  const refused = 'err:memcg-monitor: cannot register "8MB" on /g/x: EINVAL: threshold: wrong byte'
  await assert.rejects(client.register('/g', client.threshold('8MB'), playing(refused, 'exit:1')), {
    name: 'RefusedError',
    code: 'EINVAL',
    errno: 22,
    message: 'EINVAL: threshold: wrong byte',
  })
})

test('without an agent or a program the error says so', async () => {
  const text = 'cannot register "8M" on /g/x: connect /s (is `memcg-monitor agent` running?): ENOENT: No such file'
  const missing = client.register('/g', client.threshold('8M'), playing(`err:memcg-monitor: ${text}`, 'exit:1'))
  await assert.rejects(missing, { name: 'MonitorError', code: 'ENOENT', message: text })
  const program = { program: '/nonexistent/memcg-monitor' }
  const before = process.listenerCount('exit')
  await assert.rejects(client.register('/g', client.oom(), program), { code: 'ENOENT' })
  assert.equal(process.listenerCount('exit'), before)
})

test('a follower receives causes up to the removal', async () => {
  const options = playing('out:{"type":"listening"}', event('crossed'), event('removed'), 'exit:0')
  const follower = await client.follow('/g', client.oom(), options)
  const kinds = []
  for await (const { event } of follower) kinds.push(event)
  assert.deepEqual(kinds, ['crossed', 'removed'])
})

test('a follower notices the agent\'s end', async () => {
  const ended = 'err:memcg-monitor: the agent ended; register again once it is back'
  const follower = await client.follow('/g', client.oom(), playing('out:{"type":"listening"}', ended, 'exit:1'))
  await assert.rejects(follower.waitEvent(), client.EndedError)
})
