// The program beside a real agent, which `cargo xtask test` starts: one for each client.
//
//     node live.mjs SOCKET CONTROL_SOCKET GROUP SECOND_GROUP
import { EndedError, RefusedError, follow, register, threshold } from './index.mjs'

const [socket, controlSocket, group, second] = process.argv.slice(2)
const options = { socket, controlSocket, program: process.env.MEMCG_MONITOR ?? 'memcg-monitor' }
const request = threshold('8M')
try {
  await register(group, threshold('8MB'), options)
} catch (error) {
  if (error instanceof RefusedError) console.log('refused', error.errno)
}
const registration = await register(group, request, options)
const follower = await follow(group, request, options)
const other = await register(second, request, options)
console.log('registered')
for await (const { event, direction } of follower) {
  console.log('signals', String((await registration.wait()) ?? 'None'), event, String(direction ?? 'None'))
}
try {
  for (;;) await other.wait()
} catch (error) {
  if (!(error instanceof EndedError)) throw error
  console.log('ended')
}
other.close()
